"""The operations that layers are made of: what each allocates, saves for its backward and gives back.

One function an operation of torch, or of a kernel; sizes are elements. Derivatives are those of torch 2.13
(derivatives.yaml, FunctionsManual.cpp), flash attention's buffers those of flash_api.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rest_em.planner.tape import Gradients, Tape, Value, Weight, cast


def add(tape: Tape, left: Value, right: Value) -> Value:
    """Return the sum; its gradient is handed on to both."""
    out = tape.new(max(left.num_elements, right.num_elements), max(left.itemsize, right.itemsize))
    is_wanted = (left.requires_grad, right.requires_grad)
    return tape.attach(out, (left, right), lambda g: [g.view() if wanted else None for wanted in is_wanted])


def shift(tape: Tape, value: Value) -> Value:
    """Return the value plus a number."""
    out = tape.new(value.num_elements, value.itemsize)
    return tape.attach(out, (value,), lambda g: (g.view(),))


def scale(tape: Tape, value: Value) -> Value:
    """Return the value times a number, or its negative."""
    out = tape.new(value.num_elements, value.itemsize)
    return tape.attach(out, (value,), lambda g: (tape.new(g.num_elements, g.itemsize),))


def multiply(tape: Tape, left: Value, right: Value) -> Value:
    """Return the product; a factor is saved if the other one wants a gradient."""
    tape.save(left, right)
    out = tape.new(max(left.num_elements, right.num_elements), max(left.itemsize, right.itemsize))
    size = out.itemsize
    saved_left = left.detached() if right.requires_grad and tape.saving else None
    saved_right = right.detached() if left.requires_grad and tape.saving else None

    def backward(g: Value) -> Gradients:
        return [
            None if saved is None else tape.new(g.num_elements, max(size, g.itemsize))
            for saved in (saved_right, saved_left)
        ]

    return tape.attach(out, (left, right), backward)


def square(tape: Tape, value: Value) -> Value:
    """Return `value.pow(2)`; its backward computes value^1, then twice that, then the gradient."""
    tape.save(value)
    out = tape.new(value.num_elements, value.itemsize)
    saved = value.detached()

    def backward(g: Value) -> Gradients:
        power = tape.new(saved.num_elements, saved.itemsize)
        doubled = tape.new(saved.num_elements, saved.itemsize)
        found = tape.new(g.num_elements, g.itemsize)
        del power, doubled
        return (found,)

    return tape.attach(out, (value,), backward)


def mean_of_rows(tape: Tape, value: Value, num_rows: int) -> Value:
    """Return the mean of each row."""
    out, size = tape.new(num_rows, value.itemsize), value.num_elements
    return tape.attach(out, (value,), lambda g: (tape.new(size, g.itemsize),))


def sum_of_rows(tape: Tape, value: Value, num_rows: int, *, is_reshaped: bool = False) -> Value:
    """Return the sum of each row; its backward is a view, of a value that was reshaped for it a copy."""
    size = value.num_elements

    def backward(g: Value) -> Gradients:
        return (tape.new(size, g.itemsize) if is_reshaped else g.view(size),)

    return tape.attach(tape.new(num_rows, value.itemsize), (value,), backward)


def pointwise(tape: Tape, value: Value, *, saves_output: bool = False) -> Value:
    """Return a function of each element that is one kernel: silu, gelu, or (saving its output) tanh."""
    if not saves_output:
        tape.save(value)
    out = tape.new(value.num_elements, value.itemsize)
    saved = out.detached() if saves_output else value.detached()
    if saves_output:
        tape.save(value)

    def backward(g: Value) -> Gradients:
        found = tape.new(g.num_elements, max(g.itemsize, saved.itemsize))
        return (found,)

    return tape.attach(out, (value,), backward)


def part(tape: Tape, value: Value, num_elements: int) -> Value:
    """Return a slice, a view; its backward fills the whole with zeros around the gradient."""
    whole = value.num_elements
    return tape.attach(value.view(num_elements), (value,), lambda g: (tape.new(whole, g.itemsize),))


def split(tape: Tape, value: Value, sizes: Sequence[int]) -> list[Value]:
    """Return views that torch.split or chunk gives; their backward joins all gradients in one."""
    outs = [value.view(size) for size in sizes]
    if not value.requires_grad or not tape.saving:
        return outs
    joint = _Join(tape, value, len(outs))
    for out in outs:
        tape.attach(out, (value,), joint.take)
    return outs


class _Join:
    """The backward of a split: one node of several outputs, which runs when all gradients are there."""

    def __init__(self, tape: Tape, value: Value, num_parts: int) -> None:
        self._tape, self._size, self._waiting = tape, value.num_elements, num_parts
        self._parts: list[Value] = []

    def take(self, gradient: Value) -> Gradients:
        self._parts.append(gradient)
        self._waiting -= 1
        if self._waiting:
            return (None,)
        whole = self._tape.new(self._size, gradient.itemsize)
        self._parts.clear()
        return (whole,)


def join(tape: Tape, parts: Sequence[Value]) -> Value:
    """Return the concatenation; its backward hands on views."""
    sizes = [one.num_elements for one in parts]
    out = tape.new(sum(sizes), max(one.itemsize for one in parts))
    return tape.attach(out, parts, lambda g: [g.view(size) for size in sizes])


def linear(tape: Tape, value: Value, num_rows: int, weight: Weight, bias: Weight | None = None) -> Value:
    """Return the product with a matrix; saves its input if the matrix is trained, and the matrix."""
    num_out = weight.num_elements * num_rows // value.num_elements
    offset = tape.half_weight(bias) if bias else None  # autocast begins with the last argument
    matrix = tape.half_weight(weight)
    value = tape.half(value)
    tape.save(value, matrix)
    out = tape.new(num_rows * num_out, max(value.itemsize, matrix.itemsize))
    saved_input = value.detached() if weight.is_trainable and tape.saving else None
    saved_matrix = matrix.detached() if value.requires_grad and tape.saving else None
    size_in, size_matrix, itemsize = value.num_elements, weight.num_elements, out.itemsize
    has_offset = offset is not None and offset.requires_grad

    def backward(g: Value) -> Gradients:
        if not weight.is_trainable:
            tape.account.num_passed += weight.num_elements
        of_input = None if saved_matrix is None else tape.new(size_in, itemsize)
        of_matrix = None if saved_input is None else tape.new(size_matrix, itemsize)
        return [of_input, of_matrix, g.view() if has_offset else None]

    return tape.attach(out, (value, matrix, *((offset,) if offset else ())), backward)


def embed(tape: Tape, num_tokens: int, width: int, table: Weight) -> Value:
    """Return rows of a table; its backward makes a gradient as large as the table."""
    leaf = tape.leaf(table)
    out = tape.new(num_tokens * width, table.itemsize)
    return tape.attach(out, (leaf,), lambda g: (tape.new(table.num_elements, g.itemsize),))


def layer_norm(tape: Tape, value: Value, num_rows: int, weight: Weight, bias: Weight) -> Value:
    """Return nn.LayerNorm's output; saves its input, and a mean and a deviation of each row."""
    scale_, offset = tape.leaf(weight), tape.leaf(bias)
    itemsize = max(value.itemsize, weight.itemsize) if tape.autocast else value.itemsize
    value = cast(tape, value, itemsize)
    out = tape.new(value.num_elements, itemsize)
    saved, statistics = value.detached(), tape.new(2 * num_rows, 4)
    tape.save(value, scale_)

    def backward(g: Value) -> Gradients:
        found = tape.new(saved.num_elements, saved.itemsize)
        others = [
            tape.new(one.num_elements, one.itemsize) if one.is_trainable else None for one in (weight, bias)
        ]
        assert statistics.num_elements
        return [found, *others]

    return tape.attach(out, (value, scale_, offset), backward)


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of an attention."""

    num_rows: int
    """Sequences."""
    length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def attention(tape: Tape, query: Value, key: Value, value: Value, heads: Heads) -> Value:
    """Return flash attention's output; saves all three, the output and a log-sum-exp a query and head.

    The backward holds fp32 sums of the query's gradient and, where heads share keys, theirs before they are
    summed. Source: torch 2.13, flash_attn/flash_api.cpp, mha_fwd and mha_bwd.
    """
    out = tape.new(query.num_elements, query.itemsize)
    logsumexp = tape.new(heads.num_rows * heads.num_heads * heads.length, 4)
    saved = [one.detached() for one in (query, key, value)] + [out.detached()]
    tape.save(query, key, value)

    def backward(g: Value) -> Gradients:
        rounded = heads.num_rows * heads.num_heads * (-(-heads.length // 128) * 128)
        sums = [tape.new(rounded, 4), tape.new(rounded * flash_head_size(heads.head_dim), 4)]
        found = [tape.new(one.num_elements, one.itemsize) for one in saved[:3]]
        if heads.num_heads != heads.num_kv_heads:
            sums += [tape.new(saved[0].num_elements, saved[0].itemsize) for _ in range(2)]
        del sums
        assert logsumexp.num_elements
        return found

    return tape.attach(out, (query, key, value), backward)


def packed_attention(
    tape: Tape, query: Value, key: Value, value: Value, *, heads: Heads, num_shared: int
) -> Value:
    """Return the output of attention over a pack: a kernel for each sequence, their outputs joined.

    Args:
        heads: of `num_rows` sequences of `length` tokens each.
        num_shared: tokens that all of them begin with, which are there once; their keys and values are copied
            for each sequence.

    Source: rest_em.training.attention.
    """
    if heads.num_rows == 1 and not num_shared:
        return attention(tape, query, key, value, heads)
    own, itemsize = heads.length - num_shared, query.itemsize
    num_tokens = num_shared + heads.num_rows * own
    seen = heads.num_rows * heads.length if num_shared else num_tokens
    size = seen * heads.num_kv_heads * heads.head_dim
    kept = [one.detached() for one in (query, key, value)]
    kept += [tape.new(size, itemsize) for _ in range(2)] if num_shared else []
    kept += [tape.new(query.num_elements, itemsize), tape.new(num_tokens * heads.num_heads, 4)]
    tape.save(query, key, value)
    out = tape.new(query.num_elements, itemsize)
    sizes = (query.num_elements, key.num_elements, value.num_elements)

    def backward(g: Value) -> Gradients:
        rounded = heads.num_heads * (-(-own // 128) * 128)

        def sums() -> list[Value]:  # of the kernel of one sequence
            found = [tape.new(rounded, 4), tape.new(rounded * flash_head_size(heads.head_dim), 4)]
            if heads.num_heads != heads.num_kv_heads:
                expanded = heads.length * heads.num_heads * heads.head_dim
                found += [tape.new(expanded, itemsize) for _ in range(2)]
            return found

        sums()
        kept.clear()  # a sequence's, as its gradients come
        pieces = [tape.new(sizes[0], itemsize), *(tape.new(size, itemsize) for _ in range(2))]
        sums()
        found = []
        for place in (2, 1, 0):
            found.append(tape.new(sizes[place], itemsize))
            pieces.pop()
        return found[::-1]

    return tape.attach(out, (query, key, value), backward)


def eager_attention(
    tape: Tape,
    projected: tuple[Value, Value, Value],
    mask: Value,
    heads: Heads,
    *,
    has_cap: bool,
    rate: float,
) -> tuple[Value, Value]:
    """Return the output of an attention that holds its scores, and the weights, which the caller holds too.

    Args:
        projected: queries, keys and values.
        has_cap: whether scores pass through a scaled tanh.
        rate: of the weights that are dropped.

    Source: transformers 5.23, models/gemma2/modeling_gemma2.py, `eager_attention_forward`; what is copied for
    a product, torch 2.13, LinearAlgebra.cpp, `_matmul_impl`: heads and rows that do not lie as one dimension.
    """
    query, key, value = projected
    itemsize, num_scores = query.itemsize, heads.num_rows * heads.num_heads * heads.length**2
    keys, values = _repeated(tape, key, heads), _repeated(tape, value, heads)
    is_apart = heads.num_rows > 1 and heads.num_heads > 1
    narrow = [tape.half(query)]
    weights = product(tape, shift(tape, narrow.pop()) if is_apart else narrow.pop(), keys, num_scores)
    weights = scale(tape, weights)
    if has_cap:
        weights = scale(tape, weights)
        weights = pointwise(tape, weights, saves_output=True)
        weights = scale(tape, weights)
    weights = add(tape, weights, mask)
    weights = cast(tape, softmax(tape, weights, casts=True), itemsize)
    weights = dropout(tape, weights, rate)
    out = relaid(tape, product(tape, weights, values, query.num_elements), is_copied=is_apart)
    return (shift(tape, out) if heads.num_heads > 1 else out), weights


def _repeated(tape: Tape, value: Value, heads: Heads) -> Value:
    """Return keys or values for each query head; a copy, but for one row where nothing is repeated."""
    num_elements = heads.num_rows * heads.length * heads.num_heads * heads.head_dim
    if heads.num_heads == heads.num_kv_heads:
        return shift(tape, value) if heads.num_rows > 1 and heads.num_heads > 1 else value
    if heads.num_kv_heads == 1 and heads.num_rows == 1:
        out = value.view(num_elements)
    else:
        out = tape.new(num_elements, value.itemsize)
    size = value.num_elements
    return tape.attach(out, (value,), lambda g: (tape.new(size, g.itemsize),))


def relaid(tape: Tape, value: Value, *, is_copied: bool) -> Value:
    """Return a view whose gradient comes in another order and is copied into the value's, if it is."""
    return tape.attach(
        value.view(), (value,), lambda g: (tape.new(g.num_elements, g.itemsize) if is_copied else g.view(),)
    )


def product(tape: Tape, left: Value, right: Value, num_elements: int) -> Value:
    """Return products of matrices, neither a weight; one is saved if the other wants a gradient."""
    left, right = tape.half(left), tape.half(right)
    tape.save(left, right)
    out = tape.new(num_elements, max(left.itemsize, right.itemsize))
    saved_left = left.detached() if right.requires_grad and tape.saving else None
    saved_right = right.detached() if left.requires_grad and tape.saving else None
    sizes = (left.num_elements, right.num_elements)

    def backward(g: Value) -> Gradients:
        return [
            None if saved is None else tape.new(size, g.itemsize)
            for size, saved in zip(sizes, (saved_right, saved_left), strict=True)
        ]

    return tape.attach(out, (left, right), backward)


def flash_head_size(head_dim: int) -> int:
    """Return the size that flash attention pads a head to. Source: torch 2.13, flash_attn/flash_api.cpp.

    >>> flash_head_size(80)
    96
    """
    return math.ceil(head_dim / 32) * 32 if head_dim <= 192 else 256


def dropout(tape: Tape, value: Value, rate: float) -> Value:
    """Return what is left; CUDA's kernel saves a mask of a byte an element. A rate of 0 is nothing."""
    if not rate:
        return value
    out = tape.new(value.num_elements, value.itemsize)
    mask = tape.new(value.num_elements, 1)
    tape.save(value)

    def backward(g: Value) -> Gradients:
        assert mask.num_elements
        return (tape.new(g.num_elements, g.itemsize),)

    return tape.attach(out, (value,), backward)


def gather(tape: Tape, value: Value, num_elements: int, index: Value | None = None) -> Value:
    """Return some of the rows or elements; saves the index; its backward makes zeros, then adds to a copy."""
    tape.save(value)
    whole, out = value.num_elements, tape.new(num_elements, value.itemsize)
    saved = index if tape.saving else None

    def backward(g: Value) -> Gradients:
        assert saved is None or saved.num_elements
        zeros = tape.new(whole, g.itemsize)
        found = tape.new(whole, g.itemsize)
        del zeros
        return (found,)

    return tape.attach(out, (value,), backward)


def softmax(tape: Tape, value: Value, *, casts: bool) -> Value:
    """Return the softmax in fp32, whose output is saved, of the value itself or of a cast."""
    value = cast(tape, value, 4) if casts else value
    size, itemsize = value.num_elements, value.itemsize
    out = tape.new(size, 4)
    saved = out.detached()
    tape.save(value)
    return tape.attach(
        out, (value,), lambda g: (tape.new(size, itemsize),) if saved.num_elements else (None,)
    )


def grouped_product(tape: Tape, value: Value, num_rows: int, weight: Weight, num_experts: int) -> Value:
    """Return each row's product with one of the stacked matrices, in the matrices' precision.

    The kernel isn't known to autocast. Source: transformers 5.23, integrations/moe.py, `_grouped_mm`.
    """
    matrix = tape.leaf(weight)
    value = cast(tape, value, matrix.itemsize)
    num_out = weight.num_elements // num_experts * num_rows // value.num_elements
    tape.save(value, matrix)
    out = tape.new(num_rows * num_out, matrix.itemsize)
    saved_input = value.detached() if weight.is_trainable and tape.saving else None
    size_in, wants_input = value.num_elements, value.requires_grad

    def backward(g: Value) -> Gradients:
        if not weight.is_trainable:
            tape.account.num_passed += weight.num_elements
        of_input = tape.new(size_in, g.itemsize) if wants_input else None
        of_matrix = tape.new(weight.num_elements, g.itemsize) if saved_input is not None else None
        return [of_input, of_matrix]

    return tape.attach(out, (value, matrix), backward)


def negative_log_likelihood(tape: Tape, logits: Value, num_rows: int) -> Value:
    """Return the loss of each row of fp32 logits: log_softmax, whose output is saved, then a pick."""
    likely = tape.new(logits.num_elements, 4)
    saved, size = likely.detached(), logits.num_elements
    likely = tape.attach(likely, (logits,), lambda g: (tape.new(size, 4),) if saved.num_elements else (None,))
    out = tape.new(num_rows, 4)
    return tape.attach(out, (likely,), lambda g: (tape.new(size, 4),))
