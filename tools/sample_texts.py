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
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tools.vocabulary import SOURCE, source_files

COUNTS: Mapping[str, int] = {"docstring": 20, "comment": 10, "message": 10}
"""How many texts of each kind are drawn."""
_DIRECTIVES = ("# type:", "# noqa", "# pragma", "#!")


class Text(NamedTuple):
    """A text of the source.

    Args:
        kind: docstring, comment or message.
        file: relative to the source.
        line: on which it begins, from 1.
        text: without quotes; of a message, the whole `raise` statement.
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
    """Yield the docstrings of a module, its classes and functions, and those below assignments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield statement.lineno, _dedent(value.value)


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield comments. Lines that follow each other are one comment; directives for tools are none."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    comments = [token for token in tokens if not token.string.startswith(_DIRECTIVES)]
    for _, group in groupby(enumerate(comments), key=_block):
        block = [token for _, token in group]
        yield block[0].start[0], "\n".join(token.string for token in block)


def _block(entry: tuple[int, tokenize.TokenInfo]) -> int:
    """Return a number that comments on following lines share, and that no other comment has."""
    index, token = entry
    stands_alone = token.line.lstrip().startswith("#")
    return token.start[0] - index if stands_alone else -token.start[0]


def _messages(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the statements that raise an error with a text."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _has_text(node.exc):
            yield node.lineno, ast.unparse(node)


def _has_text(call: ast.Call) -> bool:
    return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(call))


def _dedent(docstring: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in docstring.strip().splitlines())


if __name__ == "__main__":
    sys.exit(main())
