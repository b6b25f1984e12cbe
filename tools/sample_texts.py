"""Draw forty texts of the source at random, for two readers who judge whether each is clear at first reading.

`python -m tools.sample_texts` prints 20 docstrings, 10 comments and 10 error messages of src/stillhouse, numbered, each
with its file and line. The seed is the hash of the last commit, so that nobody chooses the sample, and both readers
get the same one.
"""

import ast
import random
import subprocess
import sys
import tokenize
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import NamedTuple

from tools.vocabulary import SOURCE, source_files

COUNTS: Mapping[str, int] = {"docstring": 20, "comment": 10, "message": 10}
"""How many texts of each kind are drawn."""
_DIRECTIVES = ("# type:", "# noqa", "# pragma", "# fmt:", "# ruff:", "# mypy:", "#!")


class Text(NamedTuple):
    """A text of the source.

    Args:
        kind: docstring, comment or message.
        file: relative to the source.
        line: on which it begins, from 1.
        text: a docstring below its header, a comment beside its code, a `raise` statement below the assignments
            right before it.
    """

    kind: str
    file: str
    line: int
    text: str


def draw_sample(texts: Iterable[Text], seed: str) -> list[Text]:
    """Return `COUNTS` texts of each kind, all of them where there are fewer. The same seed gives the same texts."""
    generator, pool = random.Random(seed), sorted(texts)
    sample: list[Text] = []
    for kind, count in COUNTS.items():
        candidates = [text for text in pool if text.kind == kind]
        sample += generator.sample(candidates, min(count, len(candidates)))
    return sample


def read_texts(source: Path) -> Iterator[Text]:
    """Yield every docstring, comment and error message of the modules below a directory."""
    readers: Mapping[str, Callable[[Path], Iterator[tuple[int, str]]]] = {
        "docstring": _docstrings,
        "comment": _comments,
        "message": _messages,
    }
    for path in source_files(source):
        for kind, read in readers.items():
            for line, text in read(path):
                yield Text(kind, path.relative_to(source).as_posix(), line, text)


def format_sample(sample: Sequence[Text], seed: str) -> str:
    """Return the numbered texts below a line that names the seed."""
    blocks = [
        f"{number}. {text.kind} {text.file}:{text.line}\n" + "\n".join(f"    {line}" for line in text.text.splitlines())
        for number, text in enumerate(sample, 1)
    ]
    return "\n\n".join([f"seed {seed}", *blocks])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the sample."""
    parser = ArgumentParser(prog="python -m tools.sample_texts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", metavar="TEXT", help="default: hash of the last commit")
    seed = parser.parse_args(argv).seed or last_commit()
    print(format_sample(draw_sample(read_texts(SOURCE), seed), seed))
    return 0


def last_commit() -> str:
    """Return the hash of the last commit."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, check=True).stdout.strip()


def _docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a module, its classes and functions, and those below assignments, with their headers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for previous, statement in zip([None, *node.body], node.body, strict=False):
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    header = _header(node) if previous is None else ast.unparse(previous)
                    yield statement.lineno, f"{header}\n{_dedent(value.value)}".lstrip()


def _header(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the `class` or `def` line of a node; empty for a module."""
    if isinstance(node, ast.Module):
        return ""
    return ast.unparse(node).partition("\n    ")[0].rpartition("\n")[2]


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield comments with the code that they explain. Lines that follow each other are one comment; directives for
    tools are none.
    """
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    comments = [token for token in tokens if not token.string.startswith(_DIRECTIVES)]
    lines = path.read_text(encoding="utf-8").splitlines()
    for _, group in groupby(enumerate(comments), key=_block):
        block = [token for _, token in group]
        stands_alone = block[0].line.lstrip().startswith("#")
        code = lines[block[-1].end[0] : block[-1].end[0] + 1] if stands_alone else []
        yield block[0].start[0], "\n".join(line.strip() for line in [*(token.line for token in block), *code])


def _block(entry: tuple[int, tokenize.TokenInfo]) -> int:
    """Return a number that comments on following lines share, and that no other comment has."""
    index, token = entry
    stands_alone = token.line.lstrip().startswith("#")
    return token.start[0] - index if stands_alone else -token.start[0]


def _messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the statements that raise an error with a text, after the assignments right before them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for block in (getattr(node, name, []) for name in ("body", "orelse", "handlers", "finalbody")):
            statements = block if isinstance(block, list) else []
            for index, statement in enumerate(statements):
                if isinstance(statement, ast.Raise) and isinstance(statement.exc, ast.Call) and _has_text(statement):
                    before = takewhile(lambda entry: isinstance(entry, ast.Assign), reversed(statements[:index]))
                    yield statement.lineno, "\n".join(map(ast.unparse, [*reversed(list(before)), statement]))


def _has_text(statement: ast.AST) -> bool:
    return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(statement))


def _dedent(docstring: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in docstring.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
