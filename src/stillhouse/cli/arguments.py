"""Parsing of command line arguments. A wrong argument raises `InvalidRequest`, which says what is allowed."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from stillhouse.errors import InvalidRequest
from stillhouse.units import parse_duration, parse_size

T = TypeVar("T")

_ALLOWED = "; allowed: "


class Parser(ArgumentParser):
    """An ArgumentParser that raises InvalidRequest on an error instead of exiting, and rejects abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise InvalidRequest with a message of argparse, split at "; allowed: " into problem and allowed values."""
        problem, _, allowed = message.partition(_ALLOWED)
        raise InvalidRequest(problem, allowed=allowed or None, fix=f"see {self.prog} --help")


def integer(text: str) -> int:
    """Parse an integer argument; raise argparse's ArgumentTypeError for other text."""
    return _parse_number(int, text, "a whole number")


def positive_integer(text: str) -> int:
    """Parse an integer argument of at least 1; raise argparse's ArgumentTypeError for other text."""
    number = _parse_number(int, text, "a whole number from 1")
    if number < 1:
        raise _argument_error(text, "a whole number from 1")
    return number


def number(text: str) -> float:
    """Parse an argument as a float; raise argparse's ArgumentTypeError for other text."""
    return _parse_number(float, text, "a number")


def parse_dimensions(text: str) -> tuple[int, int]:
    """Parse an image size in pixels, WIDTHxHEIGHT, and return (width, height).

    >>> parse_dimensions("512x768")
    (512, 768)
    """
    width, _, height = text.lower().partition("x")
    allowed = "WIDTHxHEIGHT in pixels, for example 512x512"
    if not (width.isdecimal() and height.isdecimal()):
        raise _argument_error(text, allowed)
    return int(width), int(height)


def as_argument(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return a parser of option values that argparse can use, made from a function that raises InvalidRequest.

    The returned function raises argparse's ArgumentTypeError instead.

    Args:
        read: function from the text of an option to its value.
    """

    def parse_argument(text: str) -> T:
        try:
            return read(text)
        except InvalidRequest as error:
            raise ArgumentTypeError(f"{error.problem}{_ALLOWED}{error.allowed}") from error

    return parse_argument


duration = as_argument(parse_duration)
"""Parse a duration such as 90, 90s, 10m or 1h, and return its seconds; a number without a unit means seconds."""
byte_size = as_argument(parse_size)
"""Parse a size such as 4GiB, 500MiB or 1000, and return its bytes; a number without a unit means bytes."""


def add_model_options(parser: ArgumentParser) -> None:
    """Add options that select and configure a pipeline to a parser: --model, and those of `add_engine_options`."""
    parser.add_argument("--model", default="shapes", metavar="NAME_OR_DIR", help="embedded model or pipeline directory")
    add_engine_options(parser)


def add_engine_options(parser: ArgumentParser) -> None:
    """Add options that configure a pipeline to a parser: --backend, --precision, --threads, --verify."""
    parser.add_argument("--backend", metavar="NAME", help="see stillhouse doctor; default: the model's own")
    parser.add_argument(
        "--precision", metavar="NAME", help="precision of the denoiser: f32, bf16, ...; default: the model's own"
    )
    parser.add_argument(
        "--threads", type=positive_integer, metavar="N", help="number of threads; default: the backend decides"
    )
    parser.add_argument("--verify", action="store_true", help="check the SHA-256 of every file first")


def engine_options(arguments: Namespace) -> dict[str, Any]:
    """Return the values of the options of `add_engine_options`, as keyword arguments for `pipelines.load.load`."""
    return {name: getattr(arguments, name) for name in ("backend", "precision", "threads", "verify")}


def png_or_directory(text: str) -> Path:
    """Parse an argument as the path of a .png file or of a directory; raise ArgumentTypeError for another file.

    >>> png_or_directory("stills/one.png").name
    'one.png'
    """
    path = Path(text)
    if path.suffix.lower() not in ("", ".png") and not text.endswith("/") and not path.is_dir():
        raise _argument_error(text, "the path of a .png file or a directory")
    return path


def png_file(text: str) -> Path:
    """Parse an argument as the path of a .png file; raise ArgumentTypeError for another file or a directory."""
    path = Path(text)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise _argument_error(text, "the path of a .png file")
    return path


def _parse_number(parse: Callable[[str], T], text: str, allowed: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise _argument_error(text, allowed) from error


def _argument_error(text: str, allowed: str) -> ArgumentTypeError:
    return ArgumentTypeError(f"{text!r}{_ALLOWED}{allowed}")
