"""Arithmetic and inequalities written in a config, computed without ``eval``: numbers, names, + - * /, min, max, abs."""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from papermix.errors import UserError

_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}
_SENSES = {ast.GtE: ">=", ast.LtE: "<=", ast.Gt: ">", ast.Lt: "<"}


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{text!r} cannot be read: write numbers and names with + - * / and parentheses.") from error


def _check(node: ast.expr, text: str) -> None:
    """Refuse everything but arithmetic. Raises UserError that names the part."""
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float | str) and not isinstance(value, bool):
            return
        case ast.Name():
            return
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            _check(inner, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            _check(left, text)
            _check(right, text)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]) if name in _FUNCTIONS:
            if name == "abs" and len(args) != 1:
                raise UserError(f"{text!r}: abs takes one value.")
            for inner in args:
                _check(inner, text)
        case _:
            raise UserError(
                f"{text!r} has {ast.unparse(node)!r} in it: only numbers, names, + - * /, min, max and abs are known."
            )


def _names(node: ast.expr) -> set[str]:
    called = {id(n.func) for n in ast.walk(node) if isinstance(n, ast.Call)}
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and id(n) not in called}
    return names | {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=str(name)) | ast.Name(id=name):
            return float(values[name])
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.UnaryOp(operand=inner):
            return -_value(inner, values)
        case ast.BinOp(left=left, op=op, right=right):
            try:
                return _OPERATORS[type(op)](_value(left, values), _value(right, values))
            except ZeroDivisionError:
                return math.nan
        case ast.Call(func=ast.Name(id=name), args=args):
            results = [_value(inner, values) for inner in args]
            if any(map(math.isnan, results)):  # min and max would drop it, or not, by its place
                return math.nan
            return abs(results[0]) if name == "abs" else _FUNCTIONS[name](results)
    raise AssertionError(ast.dump(node))


class Expression:
    """Arithmetic over names; a name with other signs in it stands in quotes (``1 - 'test/accuracy'``), or alone as it is.

    Attributes:
        names: the names that need a value.
    """

    def __init__(self, text: str) -> None:
        self.text = text.strip()
        alone = re.fullmatch(r"[A-Za-z_]\w*(/[\w.@-]+)+", self.text)
        self._tree = ast.Constant(self.text) if alone else _parse(self.text)
        _check(self._tree, self.text)
        self.names = _names(self._tree)

    def value(self, values: Mapping[str, float]) -> float:
        """The number, NaN where it divides by zero. Raises KeyError for a name without a value."""
        return _value(self._tree, values)


@dataclass(frozen=True)
class Inequality:
    """``left >= right`` (or ``<=``, ``>``, ``<``).

    Attributes:
        names: the names on both sides.
        alone: the name on the left when nothing else stands there, else None.
    """

    text: str
    left: Expression
    sense: str
    right: Expression

    @property
    def names(self) -> set[str]:
        """Names that need a value."""
        return self.left.names | self.right.names

    @property
    def alone(self) -> str | None:
        """The name on the left when nothing else stands there."""
        return self.left.text if {self.left.text} == self.left.names else None

    def slack(self, values: Mapping[str, float]) -> float:
        """How far the inequality is from its edge: positive where it holds, negative where it does not."""
        left, right = self.left.value(values), self.right.value(values)
        return left - right if self.sense.startswith(">") else right - left


class _Members(ast.NodeTransformer):
    """Puts the members of families into min and max where the families' names stand."""

    def __init__(self, text: str, families: Mapping[str, Sequence[str]]) -> None:
        self.text, self.families = text, families

    def members(self, node: ast.expr) -> Sequence[str] | None:
        """The members of a family whose name a node is."""
        name = node.id if isinstance(node, ast.Name) else node.value if isinstance(node, ast.Constant) else None
        return self.families.get(name) if isinstance(name, str) else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        args: list[ast.expr] = []
        for arg in node.args:
            members = self.members(arg)
            args += [ast.Constant(m) for m in members] if members else [self.visit(arg)]
        return ast.Call(node.func, args, node.keywords)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        members = self.members(node)
        if members and len(members) > 1:
            raise UserError(f"{self.text!r}: {ast.unparse(node)} stands for {len(members)} values: write max or min of it.")
        return ast.Constant(members[0]) if members else node

    visit_Constant = visit_Name  # type: ignore[assignment]


def inequality(text: str, families: Mapping[str, Sequence[str]] | None = None) -> Inequality:
    """Read one inequality. Raises UserError for anything else.

    Args:
        families: names that stand for several values inside min and max.
    """
    tree = _parse(text)
    if families:
        tree = _Members(text, families).visit(tree)
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or type(tree.ops[0]) not in _SENSES:
        raise UserError(f"{text!r} must be one inequality with >=, <=, > or <, like 'pruned >= dense - 0.01'.")
    left, right = Expression(ast.unparse(tree.left)), Expression(ast.unparse(tree.comparators[0]))
    return Inequality(text.strip(), left, _SENSES[type(tree.ops[0])], right)
