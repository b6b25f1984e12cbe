"""The mutants of a source text: where an operator of mutation applies, and what stands there afterwards.

A mutant differs from the original in one range of characters. Docstrings, annotations, f-strings, `__all__`, blocks
below `if TYPE_CHECKING` and assertions that only narrow a type are left alone.
"""

import ast
import io
import tokenize
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from types import CodeType, MappingProxyType
from typing import NamedTuple, TypeAlias

COMPARISONS: Mapping[str, str] = MappingProxyType(
    {
        "<": "<=",
        "<=": "<",
        ">": ">=",
        ">=": ">",
        "==": "!=",
        "!=": "==",
        "is": "is not",
        "is not": "is",
        "in": "not in",
        "not in": "in",
    }
)
"""What each comparison becomes."""
ARITHMETIC: Mapping[str, str] = MappingProxyType(
    {"+": "-", "-": "+", "*": "/", "/": "*", "//": "*", "%": "*", "**": "*", "<<": ">>", ">>": "<<"}
)
"""What each arithmetic operator becomes. The operator of an augmented assignment becomes the same with `=`."""
BOOLEANS: Mapping[str, str] = MappingProxyType({"and": "or", "or": "and"})
EXTREMES: Mapping[str, str] = MappingProxyType({"min": "max", "max": "min"})
_COMPLEMENTS = frozenset({"==", "!=", "is", "is not", "in", "not in"})
"""Comparisons whose swap is their negation."""
_IGNORED_TOKENS = frozenset({tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE})

MutantKey: TypeAlias = tuple[str, str, str, str, str, int]
"""File, function, operator, text before and after, occurrence."""
_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_Edit: TypeAlias = tuple[str, int, int, str]
"""Operator of mutation, first character, character after the last one, and the text that takes their place."""


@dataclass(frozen=True, slots=True, order=True)
class Mutant:
    """One change of one file.

    Args:
        file: path of the file as the caller named it.
        start: number of characters before the change.
        operator: operator of mutation.
        line: on which the change begins, from 1.
        function: qualified name of the class or function around the change; empty at the level of the module.
        before, after: source text of the range, and what takes its place.
        occurrence: number of mutants of this file that are alike in operator, function and texts and stand earlier.
    """

    file: str
    start: int
    operator: str
    line: int
    function: str
    before: str
    after: str
    occurrence: int = 0

    @property
    def key(self) -> MutantKey:
        """Return what names this mutant when lines above it have moved."""
        return self.file, self.function, self.operator, self.before, self.after, self.occurrence

    def apply(self, source: str) -> str:
        """Return the source text with the change."""
        return source[: self.start] + self.after + source[self.start + len(self.before) :]


def find_mutants(file: str, source: str) -> list[Mutant]:
    """Return every mutant of a module's source text, in the order of the text."""
    text = _Text(source)
    visitor = _Visitor(text)
    visitor.visit(ast.parse(source))
    mutants = sorted(
        Mutant(file, start, operator, text.line_at(start), function, source[start:end], after)
        for function, (operator, start, end, after) in visitor.edits
    )
    seen: Counter[MutantKey] = Counter()
    numbered = []
    for mutant in mutants:
        numbered.append(replace(mutant, occurrence=seen[mutant.key]))
        seen[mutant.key] += 1
    return numbered


def is_equivalent(source: str, mutated: str) -> bool:
    """Return whether both texts compile to the same code, or the mutated one does not compile."""
    try:
        return _fingerprint(_compile(source)) == _fingerprint(_compile(mutated))
    except SyntaxError:
        return True


def _compile(source: str) -> CodeType:
    return compile(source, "module", "exec", dont_inherit=True)


def _fingerprint(code: CodeType) -> tuple[object, ...]:
    """Return what the code does, without the lines and columns of its source."""
    constants = tuple(
        _fingerprint(constant) if isinstance(constant, CodeType) else repr(constant) for constant in code.co_consts
    )
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return code.co_code, code.co_exceptiontable, code.co_argcount, code.co_flags, names, constants


class _Token(NamedTuple):
    text: str
    start: int
    end: int


class _Text:
    """Places in a source text, as numbers of characters."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines = source.split("\n")
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.tokens = [
            _Token(token.string, self._place(token.start), self._place(token.end))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type not in _IGNORED_TOKENS and token.string.strip(" \t()")
        ]

    def start(self, node: ast.expr | ast.stmt) -> int:
        """Return the number of characters before a node."""
        return self._node_place(node.lineno, node.col_offset)

    def end(self, node: ast.expr | ast.stmt) -> int:
        """Return the number of characters up to the end of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._node_place(node.end_lineno, node.end_col_offset)

    def operator_between(self, left: int, right: int) -> tuple[str, int, int]:
        """Return the operator between two operands, its words joined by a space, and its range."""
        first, last = (bisect_left(self.tokens, place, key=attrgetter("start")) for place in (left, right))
        tokens = self.tokens[first:last]
        return " ".join(token.text for token in tokens), tokens[0].start, tokens[-1].end

    def line_at(self, place: int) -> int:
        """Return the line of a character, from 1."""
        return self.source.count("\n", 0, place) + 1

    def _place(self, position: tuple[int, int]) -> int:
        line, column = position
        return self.starts[min(line - 1, len(self.lines))] + column

    def _node_place(self, line: int, column: int) -> int:
        """Return the place of a node, whose columns count bytes."""
        return self.starts[line - 1] + len(self.lines[line - 1].encode()[:column].decode())


class _Visitor(ast.NodeVisitor):
    """Collects the edits of a module, each with the qualified name of the definition around it."""

    def __init__(self, text: _Text) -> None:
        self.text = text
        self.scope: list[str] = []
        self.edits: list[tuple[str, _Edit]] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._visit_definition(node, [*node.decorator_list, *node.keywords, *node.body])

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if "TypeAlias" in ast.unparse(node.annotation):
            return
        self._delete_assignment(node, [node.target])
        if node.value:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return
        self._delete_assignment(node, node.targets)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._delete_assignment(node, [node.target])
        text, start, end = self.text.operator_between(self.text.end(node.target), self.text.start(node.value))
        if after := ARITHMETIC.get(text.removesuffix("=")):
            self._add("arithmetic", start, end, f"{after}=")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        value = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(value, ast.Call):
            self._replace("statement", node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            self._replace("return", node.value, "None")
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        if not _narrows_type(node.test):
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._negate(condition)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        self._swap("comparison", [node.left, *node.comparators], COMPARISONS)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._swap("boolean", node.values, BOOLEANS)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if not any(isinstance(side, ast.JoinedStr) or _is_string(side) for side in (node.left, node.right)):
            self._swap("arithmetic", [node.left, node.right], ARITHMETIC)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            start = self.text.start(node)
            end = start + len("not")
            while self.text.source[end].isspace() and self.text.source[end] != "\n":
                end += 1
            self._add("not removed", start, end, "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in EXTREMES:
            self._replace("extreme", node.func, EXTREMES[node.func.id])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, int | float) and not isinstance(node.value, bool):
            self._replace("constant", node, repr(node.value + 1))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave f-strings alone: they are texts, and Python 3.11 does not say where their parts stand."""

    def _visit_function(self, node: _Function) -> None:
        defaults = [default for default in (*node.args.defaults, *node.args.kw_defaults) if default]
        self._visit_definition(node, [*node.decorator_list, *defaults, *node.body])

    def _visit_definition(self, node: ast.ClassDef | _Function, parts: Sequence[ast.AST]) -> None:
        self.scope.append(node.name)
        for part in parts:
            self.visit(part)
        self.scope.pop()

    def _swap(self, operator: str, operands: Sequence[ast.expr], others: Mapping[str, str]) -> None:
        for left, right in pairwise(operands):
            text, start, end = self.text.operator_between(self.text.end(left), self.text.start(right))
            if text in others:
                self._add(operator, start, end, others[text])

    def _negate(self, test: ast.expr) -> None:
        """Negate a condition, unless another operator gives the same mutant."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            right = self.text.start(test.comparators[0])
            if self.text.operator_between(self.text.end(test.left), right)[0] in _COMPLEMENTS:
                return
        self._replace("condition", test, f"not ({self.text.source[self.text.start(test) : self.text.end(test)]})")

    def _delete_assignment(self, node: ast.stmt, targets: Sequence[ast.expr]) -> None:
        """Delete an assignment to attributes; a declaration without a value is none."""
        elements = [element for target in targets for element in _elements(target)]
        if all(isinstance(element, ast.Attribute) for element in elements) and getattr(node, "value", None):
            self._replace("statement", node, "pass")

    def _replace(self, operator: str, node: ast.expr | ast.stmt, after: str) -> None:
        self._add(operator, self.text.start(node), self.text.end(node), after)

    def _add(self, operator: str, start: int, end: int, after: str) -> None:
        self.edits.append((".".join(self.scope), (operator, start, end, after)))


def _elements(target: ast.expr) -> Iterator[ast.expr]:
    """Yield what an assignment assigns to."""
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _elements(element)
    else:
        yield target


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _narrows_type(test: ast.expr) -> bool:
    """Return whether an assertion only tells the type checker what a value is."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return all(_narrows_type(value) for value in test.values)
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id == "isinstance"
    return isinstance(test, ast.Compare) and all(isinstance(operator, ast.Is | ast.IsNot) for operator in test.ops)
