"""Prompts out of a file."""

from pathlib import Path

from stillhouse.errors import InvalidRequest


def read_prompts(path: Path) -> tuple[str, ...]:
    """A prompt a line; empty lines count for nothing.

    Raises:
        InvalidRequest: no such file, no text, or no prompts in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", allowed="a text file with a prompt a line") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise InvalidRequest(f"{path} is no text", allowed="a text file with a prompt a line, in UTF-8") from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise InvalidRequest(f"{path} holds no prompts", allowed="a prompt a line")
    return prompts
