"""Small changes to the code of a module, one at a time: what mutation testing makes."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

_COMPARISONS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """A change to a module.

    Attributes:
        module: its file.
        line: where.
        change: in words.
        text: the whole module with the change.
    """

    module: str
    line: int
    change: str
    text: str


def mutants_of(source: str) -> list[tuple[int, str]]:
    """All changes that can be made to the functions of a source: line, and the change in words."""
    return [(line, words) for line, words, _ in _all_changes(ast.parse(source))]


def make_mutant(module: str, source: str, number: int) -> Mutant:
    """The change of this number of `mutants_of`."""
    tree = ast.parse(source)
    line, words, put = list(_all_changes(tree))[number]
    put()
    return Mutant(module=module, line=line, change=words, text=ast.unparse(tree))


def _all_changes(tree: ast.Module):
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node in _code_of(function):
            for words, put in _changes(node):
                yield getattr(node, "lineno", function.lineno), words, put


def _code_of(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What a function does: no types, no decorators, no functions within it, no texts."""
    waiting: list[ast.AST] = [function]
    while waiting:
        node = waiting.pop()
        if (
            _is_text(node)
            or isinstance(node, ast.JoinedStr)
            or (isinstance(node, ast.FunctionDef) and node is not function)
        ):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                waiting += [
                    each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST)
                ]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: ast.AST):
    """(words, do it) of each change at a node."""

    def field(name: str, value: object, words: str):
        return words, lambda: setattr(node, name, value)

    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        other = _COMPARISONS[type(node.ops[0])]()
        yield field("ops", [other, *node.ops[1:]], f"{ast.unparse(node)}: {type(other).__name__}")
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        other = _ARITHMETIC[type(node.op)]()
        yield field("op", other, f"{ast.unparse(node)}: {type(other).__name__}")
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield field("op", other, f"{ast.unparse(node)}: {type(other).__name__}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield field("op", ast.UAdd(), f"{ast.unparse(node)}: without the sign")
    elif isinstance(node, ast.IfExp | ast.If | ast.While):
        opposite = ast.UnaryOp(op=ast.Not(), operand=node.test)
        yield field("test", opposite, f"if {ast.unparse(node.test)}: the opposite")
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield field("value", node.value + 1, f"{node.value}: one more (line {node.lineno})")
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield field("value", not node.value, f"{node.value}: the opposite (line {node.lineno})")
    # Beside what else may change there: `if` and `while` have a condition and statements.
    for name in ("body", "orelse", "finalbody"):
        yield from _left_out(node, name)


def _left_out(node: ast.AST, name: str):
    statements = getattr(node, name, None)
    # Of `a if b else c` and a lambda they are single expressions.
    for number, statement in enumerate(statements if isinstance(statements, list) else ()):
        if isinstance(statement, ast.AugAssign) or (isinstance(statement, ast.Expr) and not _is_text(statement)):
            after = [*statements[:number], ast.Pass(), *statements[number + 1 :]]
            yield f"{ast.unparse(statement)[:80]}: left out", lambda after=after: setattr(node, name, after)
