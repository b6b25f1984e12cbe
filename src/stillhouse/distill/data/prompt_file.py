"""Read prompts from text files."""

from pathlib import Path

from stillhouse.errors import InvalidRequest


def read_prompts(path: Path) -> tuple[str, ...]:
    """Read one prompt from each line of a UTF-8 text file; empty lines are skipped.

    Raises:
        InvalidRequest: the file does not exist, is not text, or has no prompts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InvalidRequest(f"there is no file {path}", allowed="a text file with one prompt on each line") from None
    except (UnicodeDecodeError, IsADirectoryError):
        raise InvalidRequest(
            f"{path} is not a text file", allowed="a UTF-8 text file with one prompt on each line"
        ) from None
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise InvalidRequest(f"{path} has no prompts", allowed="a text file with one prompt on each line")
    return prompts
