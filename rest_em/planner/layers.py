"""What each family's layers do, operation by operation, on a tape that counts bytes.

A function here mirrors the `forward` of the transformers module that it is named after (version 5.23), down
to which local variable lives how long, for that is what memory follows. Weights are registered as they are
used, so that the same description gives the inventory and the memory; time is `timing`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rest_em.planner.operations import (
    Heads,
    add,
    attention,
    dropout,
    eager_attention,
    embed,
    gather,
    grouped_product,
    join,
    layer_norm,
    linear,
    mean_of_rows,
    multiply,
    packed_attention,
    part,
    pointwise,
    relaid,
    scale,
    shift,
    softmax,
    split,
    square,
    sum_of_rows,
)
from rest_em.planner.shapes import ModelShape
from rest_em.planner.tape import Tape, Value, Weight, cast


@dataclass(frozen=True, slots=True)
class Adapter:
    """LoRA on some of the linear layers.

    Example:
        Adapter(rank=16, targets=frozenset({"q_proj", "v_proj"}), itemsize=4)
    """

    rank: int
    targets: frozenset[str]
    """Names of modules, as peft's `target_modules`."""
    itemsize: int
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences in one row, of equal length.

    Example:
        Packed(num_sequences=8, length=1024, num_shared=600)
    """

    num_sequences: int
    length: int
    """Tokens of each, those that are shared among them."""
    num_shared: int
    """Tokens that all begin with, which are there once."""

    @property
    def num_tokens(self) -> int:
        """Of the row."""
        return self.num_shared + self.num_sequences * (self.length - self.num_shared)


@dataclass(frozen=True, slots=True)
class Pass:
    """One model on one tape, with so many tokens."""

    tape: Tape
    shape: ModelShape
    num_rows: int
    length: int
    itemsize: int
    """Of the model's own weights."""
    adapter: Adapter | None = None
    packed: Packed | None = None
    """What the one row consists of, where examples are packed."""
    embedding_name: str = "embed_tokens.weight"

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return self.num_rows * self.length

    def weight(self, name: str, num_elements: int) -> Weight:
        """Return a weight of the model itself, frozen where there are adapters."""
        return self.tape.weight(name, num_elements, self.itemsize, is_trainable=self.adapter is None)

    def project(
        self, name: str, value: Value, num_out: int, *, has_bias: bool = False, rows: int = 0
    ) -> Value:
        """Return a linear layer's output, with its adapter if it has one.

        Source: peft 0.21, tuners/lora/layer.py, `Linear.forward`.
        """
        rows = rows or self.num_tokens
        num_in = value.num_elements // rows
        bias = self.weight(f"{name}.bias", num_out) if has_bias else None
        result = linear(self.tape, value, rows, self.weight(f"{name}.weight", num_in * num_out), bias)
        adapter = self.adapter
        if adapter is None or name.rpartition(".")[2] not in adapter.targets:
            return result
        down, up = (
            self.tape.weight(f"{name}.{part_name}.weight", size, adapter.itemsize, is_trainable=True)
            for part_name, size in (("lora_A", num_in * adapter.rank), ("lora_B", num_out * adapter.rank))
        )
        value = cast(self.tape, value, adapter.itemsize)
        low = linear(self.tape, dropout(self.tape, value, adapter.dropout), rows, down)
        added = add(self.tape, result, scale(self.tape, linear(self.tape, low, rows, up)))
        return cast(self.tape, added, result.itemsize)


Layer = Callable[[Pass, str, Value, "Positions"], Value]


@dataclass(frozen=True, slots=True)
class Positions:
    """Cosines and sines that all layers share, nothing where positions are learned; and a layer's mask."""

    cosines: Value
    sines: Value
    mask: Value | None = None
    """What is added to the scores, where the model's own attention holds them."""


def rms_norm(model: Pass, name: str, value: Value, width: int) -> Value:
    """Llama's RMS norm: in fp32, cast back, then weighted; in OLMo 2 the other way round.

    Source: LlamaRMSNorm.forward, Olmo2RMSNorm.forward.
    """
    tape, itemsize, rows = model.tape, value.itemsize, value.num_elements // width
    weight = tape.leaf(model.weight(f"{name}.weight", width))
    wide = cast(tape, value, 4)
    variance = mean_of_rows(tape, square(tape, wide), rows)
    wide = multiply(tape, wide, pointwise(tape, shift(tape, variance), saves_output=True))
    if model.shape.family == "olmo2":
        return cast(tape, multiply(tape, weight, wide), itemsize)
    return multiply(tape, weight, cast(tape, wide, itemsize))


def gemma_norm(model: Pass, name: str, value: Value, width: int) -> Value:
    """Gemma's RMS norm: weighted with 1 + w in fp32, then cast back. Source: GemmaRMSNorm.forward."""
    tape, itemsize, rows = model.tape, value.itemsize, value.num_elements // width
    weight = tape.leaf(model.weight(f"{name}.weight", width))
    wide = cast(tape, value, 4)
    variance = mean_of_rows(tape, square(tape, wide), rows)
    output = multiply(tape, wide, pointwise(tape, shift(tape, variance), saves_output=True))
    del wide, variance
    output = multiply(tape, output, shift(tape, cast(tape, weight, 4)))
    return cast(tape, output, itemsize)


def plain_norm(model: Pass, name: str, value: Value, width: int) -> Value:
    """nn.LayerNorm."""
    return layer_norm(
        model.tape,
        value,
        value.num_elements // width,
        model.weight(f"{name}.weight", width),
        model.weight(f"{name}.bias", width),
    )


_WITH_PLAIN_NORMS = frozenset(["phi", "gpt2", "gpt_neox", "starcoder2", "stablelm"])


def norm(model: Pass, name: str, value: Value, width: int) -> Value:
    """Return the norm of the model's family."""
    family = model.shape.family
    if family.startswith("gemma"):
        return gemma_norm(model, name, value, width)
    if family in _WITH_PLAIN_NORMS:
        return plain_norm(model, name, value, width)
    return rms_norm(model, name, value, width)


def activate(tape: Tape, name: str, value: Value) -> Value:
    """Return transformers' activation of this name: one kernel, but for those written out in Python."""
    if name == "gelu_new":
        return multiply(tape, scale(tape, value), shift(tape, _tanh_of_cube(tape, value)))
    if name == "gelu_fast":
        return multiply(tape, scale(tape, value), shift(tape, _tanh_of_products(tape, value)))
    return pointwise(tape, value)


def _tanh_of_cube(tape: Tape, value: Value) -> Value:
    """Return tanh of the value and its cube, which autocast computes in fp32."""
    cubed = [square(tape, cast(tape, value, 4) if tape.autocast else value)]
    summed = [add(tape, value, scale(tape, cubed.pop()))]
    return pointwise(tape, scale(tape, summed.pop()), saves_output=True)


def _tanh_of_products(tape: Tape, value: Value) -> Value:
    """Return the same without a power."""
    inner = multiply(tape, scale(tape, value), shift(tape, multiply(tape, scale(tape, value), value)))
    return pointwise(tape, inner, saves_output=True)


def rotate(model: Pass, value: Value, positions: Positions) -> Value:
    """Return queries or keys with their positions in them. Source: apply_rotary_pos_emb."""
    tape = model.tape
    turned = multiply(tape, value, positions.cosines)
    return add(tape, turned, multiply(tape, _rotate_half(tape, value), positions.sines))


def _rotate_half(tape: Tape, value: Value) -> Value:
    first, second = part(tape, value, value.num_elements // 2), part(tape, value, value.num_elements // 2)
    return join(tape, [scale(tape, second), first])


def rotate_in_part(model: Pass, value: Value, positions: Positions) -> Value:
    """Return the same where only a part of each head is rotated, or the code takes it apart anyway."""
    tape, shape = model.tape, model.shape
    num_rotated = value.num_elements * shape.rotary_dim // shape.head_dim
    rotated, rest = part(tape, value, num_rotated), part(tape, value, value.num_elements - num_rotated)
    return join(tape, [rotate(model, rotated, positions), rest])


def attend(model: Pass, query: Value, key: Value, value: Value) -> Value:
    """Return what the heads attend to; under autocast the kernel takes half precision."""
    query, key, value = (model.tape.half(one) for one in (query, key, value))
    if model.packed is not None:
        shape, packed = model.shape, model.packed
        sizes = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        heads = Heads(packed.num_sequences, packed.length, *sizes)
        return packed_attention(model.tape, query, key, value, heads=heads, num_shared=packed.num_shared)
    return attention(model.tape, query, key, value, _heads_of(model))


def _heads_of(model: Pass) -> Heads:
    shape = model.shape
    return Heads(model.num_rows, model.length, shape.num_heads, shape.num_kv_heads, shape.head_dim)


def rotary_attention(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """Llama's attention and those like it, with norms and biases where the family has them."""
    return _attention_and_weights(model, name, value, positions)[0]


def _attention_and_weights(
    model: Pass, name: str, value: Value, positions: Positions
) -> tuple[Value, Value | None]:
    """Return the same with the weights of an attention that holds them."""
    shape, is_phi = model.shape, model.shape.family == "phi"
    names = ("q_layernorm", "k_layernorm") if is_phi else ("q_norm", "k_norm")
    has_bias, norms_at_once = shape.has_attention_bias, shape.family in ("qwen3", "qwen3_moe", "olmo2")
    query = model.project(f"{name}.q_proj", value, shape.query_width, has_bias=has_bias)
    if shape.has_qk_norm and norms_at_once:
        query = _norm_of_heads(model, f"{name}.{names[0]}", query, shape.query_width)
    key = model.project(f"{name}.k_proj", value, shape.kv_width, has_bias=has_bias)
    if shape.has_qk_norm and norms_at_once:
        key = _norm_of_heads(model, f"{name}.{names[1]}", key, shape.kv_width)
    values = model.project(f"{name}.v_proj", value, shape.kv_width, has_bias=has_bias)
    if shape.has_qk_norm and not norms_at_once:
        query = _norm_of_heads(model, f"{name}.{names[0]}", query, shape.query_width)
        key = _norm_of_heads(model, f"{name}.{names[1]}", key, shape.kv_width)
    if positions.mask is not None:
        query, key, values = (_relaid(model, one) for one in (query, key, values))
    if shape.is_rotated(_number_of(name)):
        query, key = _rotate_both(model, query, key, positions)
    weights = None
    if positions.mask is not None:
        has_cap, rate = shape.has_score_cap, shape.dropouts[2]
        three, heads = (query, key, values), _heads_of(model)
        out, weights = eager_attention(model.tape, three, positions.mask, heads, has_cap=has_cap, rate=rate)
    else:
        out = attend(model, query, key, values)
    output = "dense" if is_phi else "o_proj"
    out = model.project(f"{name}.{output}", out, shape.hidden_size, has_bias=shape.has_output_bias)
    return out, weights


def _relaid(model: Pass, value: Value) -> Value:
    """Return heads before their tokens, whose gradients are copied back, but not of a single head."""
    is_one_head = value.num_elements == model.num_tokens * model.shape.head_dim
    return relaid(model.tape, value, is_copied=not is_one_head)


def _norm_of_heads(model: Pass, name: str, value: Value, width: int) -> Value:
    """Return queries or keys, normalised head by head, or in OLMo 2 all heads together."""
    return norm(model, name, value, width if model.shape.family == "olmo2" else model.shape.head_dim)


def _rotate_both(model: Pass, query: Value, key: Value, positions: Positions) -> tuple[Value, Value]:
    turn = rotate_in_part if model.shape.family in ("phi", "stablelm") else rotate
    itemsize = query.itemsize
    turned, other = turn(model, query, positions), turn(model, key, positions)
    if positions.mask is not None:  # products cast for themselves, later
        return turned, other
    return cast(model.tape, turned, itemsize), cast(model.tape, other, itemsize)


def _number_of(name: str) -> int:
    """Return a layer's number.

    >>> _number_of("layers.3.mlp")
    3
    """
    return int(name.split(".")[1])


def phi3_attention(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """Phi-3's: one projection for queries, keys and values, taken apart by slices. Source: Phi3Attention."""
    shape, tokens, tape = model.shape, model.num_tokens, model.tape
    fused = model.project(f"{name}.qkv_proj", value, shape.query_width + 2 * shape.kv_width)
    widths = (shape.query_width, shape.kv_width, shape.kv_width)
    query, key, values = (part(tape, fused, tokens * width) for width in widths)
    turned = rotate_in_part(model, query, positions)
    key = rotate_in_part(model, key, positions)
    query = turned
    out = attend(model, query, key, values)
    return model.project(f"{name}.o_proj", out, shape.hidden_size)


def fused_attention(model: Pass, name: str, value: Value, positions: Positions | None) -> Value:
    """GPT-2's and GPT-NeoX's: one projection, split in three. Source: GPT2Attention, GPTNeoXAttention."""
    shape, width = model.shape, model.shape.query_width
    names = ("c_attn", "c_proj") if positions is None else ("query_key_value", "dense")
    fused = model.project(f"{name}.{names[0]}", value, 3 * width, has_bias=shape.has_attention_bias)
    query, key, values = split(model.tape, fused, [model.num_tokens * width] * 3)
    if positions is not None:
        turned = rotate_in_part(model, query, positions)
        key = rotate_in_part(model, key, positions)
        query = turned
    out = attend(model, query, key, values)
    return model.project(f"{name}.{names[1]}", out, shape.hidden_size, has_bias=shape.has_output_bias)


def gated_mlp(model: Pass, name: str, value: Value, width: int, rows: int = 0) -> Value:
    """Return down(act(gate(x)) * up(x)). Source: LlamaMLP.forward."""
    shape, has_bias = model.shape, model.shape.has_mlp_bias
    gate = model.project(f"{name}.gate_proj", value, width, has_bias=has_bias, rows=rows)
    gate = activate(model.tape, shape.activation, gate)
    up = model.project(f"{name}.up_proj", value, width, has_bias=has_bias, rows=rows)
    both = multiply(model.tape, gate, up)
    del gate, up
    return model.project(f"{name}.down_proj", both, shape.hidden_size, has_bias=has_bias, rows=rows)


def phi3_mlp(model: Pass, name: str, value: Value) -> Value:
    """Return the same with one projection for gate and up. Source: Phi3MLP.forward."""
    shape, tape = model.shape, model.tape
    fused = model.project(f"{name}.gate_up_proj", value, 2 * shape.intermediate_size)
    gate, up = split(tape, fused, [model.num_tokens * shape.intermediate_size] * 2)
    del fused
    up = multiply(tape, up, activate(tape, shape.activation, gate))
    return model.project(f"{name}.down_proj", up, shape.hidden_size)


def sparse_mlp(model: Pass, name: str, value: Value) -> Value:
    """Return a mixture of experts' output, every token's through its experts and the shared one.

    Source: Qwen2MoeSparseMoeBlock, MixtralSparseMoeBlock; integrations/moe.py, `grouped_mm_experts_forward`.
    """
    tape, experts = model.tape, model.shape.experts
    assert experts is not None
    width = experts.shared_intermediate_size
    shared = gated_mlp(model, f"{name}.shared_expert", value, width) if width else None
    weights, indices = _route(model, name, value)
    out = _through_experts(model, f"{name}.experts", value, weights)
    assert indices.num_elements
    if shared is None:
        return out
    gate = pointwise(tape, model.project(f"{name}.shared_expert_gate", value, 1), saves_output=True)
    shared = multiply(tape, gate, shared)
    return add(tape, out, shared)


def _route(model: Pass, name: str, value: Value) -> tuple[Value, Value]:
    """Return how much each of a token's experts counts, and which those are.

    Source: MixtralTopKRouter, Qwen2MoeTopKRouter.
    """
    shape, tape, tokens, experts = model.shape, model.tape, model.num_tokens, model.shape.experts
    assert experts is not None
    matrix = model.weight(f"{name}.gate.weight", experts.num_experts * shape.hidden_size)
    logits = linear(tape, value, tokens, matrix)
    likely = softmax(tape, logits, casts=shape.family == "mixtral")
    indices = tape.new(tokens * experts.num_active, 8)
    weights = gather(tape, likely, tokens * experts.num_active, indices)
    if experts.is_normalised:
        weights = multiply(tape, weights, sum_of_rows(tape, weights, tokens))
    if shape.family != "mixtral":
        weights = cast(tape, weights, logits.itemsize)
    return weights, indices


def _through_experts(model: Pass, name: str, value: Value, weights: Value) -> Value:
    """Return the sums of the experts' outputs, whose rows lie sorted by expert meanwhile.

    Sizes do not depend on which experts are chosen: a product is over all chosen rows, however many of them
    are one expert's.
    """
    shape, tape, tokens, experts = model.shape, model.tape, model.num_tokens, model.shape.experts
    assert experts is not None
    rows, num, size = (
        tokens * experts.num_active,
        experts.num_experts,
        experts.intermediate_size * shape.hidden_size,
    )
    order = [tape.new(rows, 8), tape.new(rows, 8), tape.new(rows, 4)]  # sorted experts, also as numbers
    chosen = gather(tape, value, rows * shape.hidden_size, tape.new(rows, 8))
    weights = gather(tape, weights, rows, order[0])
    out = grouped_product(tape, chosen, rows, model.weight(f"{name}.gate_up_proj", num * 2 * size), num)
    out = _gate(model, out)
    out = grouped_product(tape, out, rows, model.weight(f"{name}.down_proj", num * size), num)
    weighted = multiply(tape, out, weights)
    weighted = gather(tape, weighted, weighted.num_elements, tape.new(rows, 8))
    assert order
    summed = sum_of_rows(tape, weighted, tokens * shape.hidden_size, is_reshaped=True)
    return cast(tape, summed, value.itemsize)


def _gate(model: Pass, fused: Value) -> Value:
    gate, up = split(model.tape, fused, [fused.num_elements // 2] * 2)
    return multiply(model.tape, activate(model.tape, model.shape.activation, gate), up)


_PLAIN_MLP = {
    "phi": ("fc1", "fc2"),
    "gpt2": ("c_fc", "c_proj"),
    "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h"),
    "starcoder2": ("c_fc", "c_proj"),
}


def plain_mlp(model: Pass, name: str, value: Value) -> Value:
    """Return down(act(up(x))). Source: GPT2MLP, PhiMLP, GPTNeoXMLP, Starcoder2MLP."""
    shape, (up, down) = model.shape, _PLAIN_MLP[model.shape.family]
    hidden = model.project(f"{name}.{up}", value, shape.intermediate_size, has_bias=shape.has_mlp_bias)
    hidden = activate(model.tape, shape.activation, hidden)
    return model.project(f"{name}.{down}", hidden, shape.hidden_size, has_bias=shape.has_mlp_bias)


def llama_layer(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """A pre-norm layer: Llama, Mistral, Qwen, Gemma, Phi-3, Granite, StarCoder 2, and mixtures of experts."""
    shape, width = model.shape, model.shape.hidden_size
    residual = value
    value = norm(model, f"{name}.input_layernorm", value, width)
    attention_of = phi3_attention if shape.family == "phi3" else rotary_attention
    value = attention_of(model, f"{name}.self_attn", value, positions)
    value = _joined(model, residual, value)
    residual = value
    value = norm(model, f"{name}.post_attention_layernorm", value, width)
    value = _mlp(model, f"{name}.mlp", value)
    return _joined(model, residual, value)


def _mlp(model: Pass, name: str, value: Value) -> Value:
    shape = model.shape
    if shape.family == "phi3":
        return phi3_mlp(model, name, value)
    if shape.family in _PLAIN_MLP:
        return plain_mlp(model, name, value)
    if shape.is_sparse(_number_of(name)):
        return sparse_mlp(model, name, value)
    return gated_mlp(model, name, value, shape.intermediate_size)


def _joined(model: Pass, residual: Value, value: Value) -> Value:
    """Return the residual stream with what a block adds, which Granite scales."""
    value = dropout(model.tape, value, model.shape.dropouts[1])
    return add(model.tape, residual, scale(model.tape, value) if model.shape.family == "granite" else value)


def gemma2_layer(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """A layer with norms before and after: Gemma 2 and 3. Source: Gemma2DecoderLayer.forward."""
    shape, tape, width = model.shape, model.tape, model.shape.hidden_size
    residual = value
    value = norm(model, f"{name}.input_layernorm", value, width)
    value, _ = _attention_and_weights(model, f"{name}.self_attn", value, positions)  # held, as there
    value = norm(model, f"{name}.post_attention_layernorm", value, width)
    value = add(tape, residual, value)
    residual = value
    value = norm(model, f"{name}.pre_feedforward_layernorm", value, width)
    value = gated_mlp(model, f"{name}.mlp", value, shape.intermediate_size)
    value = norm(model, f"{name}.post_feedforward_layernorm", value, width)
    return add(tape, residual, value)


def olmo2_layer(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """A layer with norms after: OLMo 2. Source: Olmo2DecoderLayer.forward."""
    tape, width = model.tape, model.shape.hidden_size
    residual = value
    value = rotary_attention(model, f"{name}.self_attn", value, positions)
    value = norm(model, f"{name}.post_attention_layernorm", value, width)
    value = add(tape, residual, value)
    residual = value
    value = gated_mlp(model, f"{name}.mlp", value, model.shape.intermediate_size)
    value = norm(model, f"{name}.post_feedforward_layernorm", value, width)
    return add(tape, residual, value)


def stablelm_layer(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """Source: StableLmDecoderLayer.forward."""
    shape, tape, width = model.shape, model.tape, model.shape.hidden_size
    residual = value
    value = norm(model, f"{name}.input_layernorm", value, width)
    attended = rotary_attention(model, f"{name}.self_attn", value, positions)
    if shape.is_parallel:
        fed = gated_mlp(model, f"{name}.mlp", value, shape.intermediate_size)
        fed = dropout(tape, fed, shape.dropouts[1])
        return add(tape, add(tape, residual, attended), fed)
    residual = add(tape, residual, attended)
    fed = norm(model, f"{name}.post_attention_layernorm", residual, width)
    fed = gated_mlp(model, f"{name}.mlp", fed, shape.intermediate_size)
    return add(tape, residual, dropout(tape, fed, shape.dropouts[1]))


def phi_layer(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """Attention and MLP read the same norm. Source: PhiDecoderLayer.forward."""
    tape, rate = model.tape, model.shape.dropouts[1]
    residual = value
    value = norm(model, f"{name}.input_layernorm", value, model.shape.hidden_size)
    attended = dropout(tape, rotary_attention(model, f"{name}.self_attn", value, positions), rate)
    fed = dropout(tape, plain_mlp(model, f"{name}.mlp", value), rate)
    return add(tape, add(tape, attended, fed), residual)


def gpt2_layer(model: Pass, name: str, value: Value, positions: Positions | None) -> Value:
    """Source: GPT2Block.forward."""
    tape, width, rate = model.tape, model.shape.hidden_size, model.shape.dropouts[1]
    residual = value
    value = norm(model, f"{name}.ln_1", value, width)
    attended = dropout(tape, fused_attention(model, f"{name}.attn", value, None), rate)
    value = add(tape, attended, residual)
    residual = value
    value = norm(model, f"{name}.ln_2", value, width)
    fed = dropout(tape, plain_mlp(model, f"{name}.mlp", value), rate)
    return add(tape, residual, fed)


def gpt_neox_layer(model: Pass, name: str, value: Value, positions: Positions) -> Value:
    """Source: GPTNeoXLayer.forward."""
    shape, tape, width = model.shape, model.tape, model.shape.hidden_size
    attended = norm(model, f"{name}.input_layernorm", value, width)
    attended = fused_attention(model, f"{name}.attention", attended, positions)
    attended = dropout(tape, attended, shape.dropouts[1])
    if not shape.is_parallel:
        attended = add(tape, attended, value)
    fed = norm(model, f"{name}.post_attention_layernorm", value if shape.is_parallel else attended, width)
    fed = dropout(tape, plain_mlp(model, f"{name}.mlp", fed), shape.dropouts[1])
    both = add(tape, fed, attended)
    return add(tape, both, value) if shape.is_parallel else both


def layer_of(shape: ModelShape) -> Layer:
    """Return what a layer of the shape's family does."""
    special: dict[str, Layer] = {
        "gemma2": gemma2_layer,
        "gemma3_text": gemma2_layer,
        "olmo2": olmo2_layer,
        "stablelm": stablelm_layer,
        "phi": phi_layer,
        "gpt_neox": gpt_neox_layer,
    }
    if shape.family == "gpt2":
        return gpt2_layer
    return special.get(shape.family, llama_layer)


def embed_tokens(model: Pass, *, needs_gradient: bool) -> tuple[Value, list[Value]]:
    """Return the first layer's input, and the locals that the model's forward holds until it returns.

    With peft gradients flow to the embeddings where layers are computed again.
    """
    shape, tape, tokens = model.shape, model.tape, model.num_tokens
    table = model.weight("embed_tokens.weight", shape.vocab_size * shape.hidden_size)
    value = embed(tape, tokens, shape.hidden_size, table)
    if shape.family.startswith("gemma"):
        value = scale(tape, value)
    if needs_gradient:
        tape.require_gradient(value)
    if shape.family == "granite":
        value = scale(tape, value)
    held = [value]
    if shape.family == "gpt2":
        assert shape.max_positions is not None
        learned = model.weight("wpe.weight", shape.max_positions * shape.hidden_size)
        held.append(embed(tape, model.length, shape.hidden_size, learned))
        value = add(tape, *held)
    value = dropout(tape, value, shape.dropouts[0])
    return value, [value] if shape.family == "phi" else held  # Phi's forward calls both by one name


def positions_of(model: Pass, itemsize: int) -> Positions:
    """Return the cosines and sines of one sequence, precise as the first layer's input; OLMo 2's in fp32."""
    size = model.length * model.shape.rotary_dim
    itemsize = 4 if model.shape.family == "olmo2" else itemsize
    return Positions(model.tape.new(size, itemsize), model.tape.new(size, itemsize))


def masks_of(model: Pass, itemsize: int) -> Mapping[bool, Value]:
    """Return the masks of layers with a window and without; none where a kernel masks.

    Source: transformers 5.23, masking_utils.py, `eager_mask`, in the precision of the first layer's input.
    """
    if not model.shape.has_eager_attention:
        return {}
    size = model.num_rows * model.length**2
    return {has_window: model.tape.new(size, itemsize) for has_window in (False, True)}


def project_to_logits(model: Pass, value: Value, num_kept: int) -> Value:
    """Return the logits of the last positions of each row, from the last norm's output."""
    shape, tape, rows = model.shape, model.tape, model.num_rows * num_kept
    if num_kept < model.length:
        value = part(tape, value, rows * shape.hidden_size)
    is_apart = num_kept < model.length and model.num_rows > 1 and tape.half_is(value)
    return logits_of(model, value, rows, is_apart=is_apart)


def logits_of(model: Pass, value: Value, rows: int, *, is_apart: bool = False) -> Value:
    """Return the logits of so many tokens; rows that lie apart are copied together before the product."""
    shape, tape = model.shape, model.tape
    name = "embed_tokens.weight" if shape.is_tied else "lm_head.weight"
    matrix = model.weight(name, shape.vocab_size * shape.hidden_size)
    bias = model.weight("lm_head.bias", shape.vocab_size) if shape.family == "phi" else None
    with tape.counting("logits"):
        logits = linear(tape, shift(tape, value) if is_apart else value, rows, matrix, bias)
        del value
        if shape.family == "granite":
            logits = scale(tape, logits)
        if shape.has_logit_cap:
            logits = scale(tape, logits)
            logits = pointwise(tape, logits, saves_output=True)
            logits = scale(tape, logits)
    return logits
