"""Tests that are nothing but assertions about one call each, read as data: what is called, what is wanted.

Most tests of the usual data sets are such, and need no process to run them: `assert f(2) == 4`,
`assert not f("")`, `assert abs(f(1) - 2 / 3) < 1e-6`, `assert tuple(f([1])) == tuple([1])`. Nothing of a
test is evaluated as code: what is constant is folded, within bounds, and what is done to a call's value is
one of a few functions. A test with anything more in it is not read here.
"""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rest_em.rewards.sandbox.values import check_spread

MAX_BITS = 4096
"""Of an integer that folding makes."""
MAX_DIGITS = 100
"""That `round` keeps or drops."""
MAX_REPEATED = 2**16
"""Items of a sequence that folding makes by repeating one."""

_VIEWS: dict[str, Callable[..., Any]] = {
    view.__name__: view for view in (abs, bool, float, frozenset, int, list, round, set, sorted, str, tuple)
}
"""What may be done to a call's value, or to a constant, before it is compared."""
_RELATIONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an assertion wants of a call's value.

    Example:
        Wanted((), operator.eq, 4, "f(2) == 4")
    """

    steps: tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...]
    """What is done to the value first: functions, and their arguments after it."""
    relation: Callable[[Any, Any], bool]
    constant: Any
    """What the value is then compared with."""
    source: str
    """The assertion, for people."""

    @property
    def is_plain(self) -> bool:
        """Say whether the value must equal the constant, and nothing else is asked."""
        return not self.steps and self.relation is operator.eq

    def holds(self, value: Any) -> bool:
        """Say whether the assertion passes; one that raises does not."""
        try:
            for function, arguments in self.steps:
                if function in (set, frozenset):
                    check_spread(list(value))
                value = function(value, *arguments)
            return bool(self.relation(value, self.constant))
        except (TypeError, ValueError, ArithmeticError, RecursionError):
            return False


@dataclass(frozen=True, slots=True)
class AssertedCall:
    """A call's arguments, and what is wanted of its value."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    wanted: Wanted


def read_assertions(tree: ast.Module, entry_point: str, bound: set[str]) -> list[AssertedCall]:
    """Return the calls of a test that is nothing but assertions about one call each; else an empty list.

    Args:
        tree: the test.
        entry_point: the function that is tested; a function `check` of the test gets it as `candidate`.
        bound: the names that the test's setup binds, `*` for any.
    """
    body, names = list(tree.body), {entry_point}
    checks = [one for one in body if isinstance(one, ast.FunctionDef) and one.name == "check"]
    if checks and entry_point != "check":
        (check,) = checks if len(checks) == 1 else (None,)
        if check is None or [one.arg for one in check.args.args] != ["candidate"] or check.decorator_list:
            return []
        body = [one for one in body if one is not check] + check.body
        names = {"candidate"}
    views = set() if "*" in bound else _VIEWS.keys() - bound - names
    try:
        return [call for statement in body for call in _Reader(names, views).calls(statement)]
    except (ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):  # there is more to it
        return []


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads statements; each method raises ValueError for what is none of its business."""

    names: set[str]
    """What the entry point is called by."""
    views: set[str]
    """Those of `_VIEWS` that mean what they mean in Python."""

    def calls(self, statement: ast.stmt) -> Iterator[AssertedCall]:
        match statement:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                return
            case ast.Expr(value=ast.Name(id=name)) if name in vars(builtins):
                return
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name not in self.names | self.views:
                ast.literal_eval(value)
            case ast.Assert(test=ast.Constant(value=True)):
                return
            case ast.Assert(test=test):
                yield self._asserted(test)
            case _:
                raise ValueError(f"line {statement.lineno} is no assertion")

    def _asserted(self, test: ast.expr) -> AssertedCall:
        relation: Callable[[Any, Any], bool] = operator.is_
        constant: Any = True
        match test:
            case ast.Compare(
                left=seen, ops=[ast.Is()], comparators=[ast.Constant(value=None | bool() as constant)]
            ):
                call, steps = self._seen(seen)
            case ast.Compare(left=seen, ops=[kind], comparators=[other]) if type(kind) in _RELATIONS:
                relation, constant = _RELATIONS[type(kind)], self._constant(other)
                call, steps = self._seen(seen)
            case _:
                call, steps = self._seen(test)
                steps = (*steps, (bool, ()))
        if any(one.arg is None for one in call.keywords):
            raise ValueError("keywords that are not told")
        return AssertedCall(
            tuple(self._constant(one) for one in call.args),
            {str(one.arg): self._constant(one.value) for one in call.keywords},
            Wanted(steps, relation, constant, ast.unparse(test)),
        )

    def _seen(
        self, node: ast.expr
    ) -> tuple[ast.Call, tuple[tuple[Callable[..., Any], tuple[Any, ...]], ...]]:
        """Return the call that an expression is about, and what is done to its value."""
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in self.names:
                return node, ()
            case ast.UnaryOp(op=ast.Not(), operand=seen):
                step: Callable[..., Any] = operator.not_
                arguments: tuple[Any, ...] = ()
            case ast.BinOp(left=seen, op=ast.Sub(), right=other):
                step, arguments = operator.sub, (self._constant(other),)
            case ast.Call(func=ast.Name(id=name), args=[seen, *others], keywords=[]) if name in self.views:
                step, arguments = _VIEWS[name], tuple(self._constant(one) for one in others)
                _check_digits(name, arguments)
            case _:
                raise ValueError("no call of the entry point")
        call, steps = self._seen(seen)
        return call, (*steps, (step, arguments))

    def _constant(self, node: ast.expr) -> Any:  # noqa: PLR0911
        """Return the value of an expression of constants."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.List(elts=items):
                return [self._constant(one) for one in items]
            case ast.Tuple(elts=items):
                return tuple(self._constant(one) for one in items)
            case ast.Set(elts=items):
                return {self._constant(one) for one in items}
            case ast.Dict(keys=keys, values=values) if all(keys):
                return {
                    self._constant(key): self._constant(one)  # type: ignore[arg-type]
                    for key, one in zip(keys, values, strict=True)
                }
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._constant(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return +self._constant(operand)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
                return _computed(sign, self._constant(left), self._constant(right))
            case ast.Call(func=ast.Name(id=name), args=items, keywords=[]) if name in self.views:
                value, *others = (self._constant(one) for one in items)
                _check_digits(name, others)
                return _VIEWS[name](value, *others)
        raise ValueError("no constant")


def _computed(sign: ast.operator, left: Any, right: Any) -> Any:
    """Return what arithmetic makes of two constants, where that is cheap.

    Raises:
        ValueError: it is not, or may not be.
    """
    kinds = {type(left), type(right)}
    if kinds <= {int, float, bool, complex}:
        bits = [one.bit_length() if isinstance(one, int) else 64 for one in (left, right)]
        size = bits[0] * abs(right) if isinstance(sign, ast.Pow) and kinds <= {int, bool} else sum(bits)
        if size <= MAX_BITS:
            return _ARITHMETIC[type(sign)](left, right)
    elif isinstance(sign, ast.Add) and len(kinds) == 1 and kinds <= {str, bytes, list, tuple}:
        return left + right
    elif isinstance(sign, ast.Mult) and int in kinds and kinds & {str, bytes, list, tuple}:
        sequence, times = (right, left) if isinstance(left, int) else (left, right)
        if len(sequence) * times <= MAX_REPEATED:
            return sequence * times
    raise ValueError("arithmetic that is not done here")


def _check_digits(view: str, arguments: Sequence[Any]) -> None:
    if view == "round" and any(abs(one) > MAX_DIGITS for one in arguments):
        raise ValueError("digits beyond all reason")
