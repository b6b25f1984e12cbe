"""Import of the optional packages that reports and tables need."""

from importlib import import_module
from typing import Any

from stillhouse.errors import RuntimeMissing


def require_extra(name: str) -> Any:
    """Import a module of the extra `accelerate`.

    Raises:
        RuntimeMissing: it cannot be imported; the message has the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        fix = "pip install 'stillhouse[accelerate]'"
        raise RuntimeMissing(f"{name.partition('.')[0]} cannot be used here: {error}", fix=fix) from error
