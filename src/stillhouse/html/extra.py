"""Import of the optional packages that HTML reports and spreadsheets need."""

from importlib import import_module
from typing import Any

from stillhouse.errors import RuntimeMissing


def require_extra(name: str) -> Any:
    """Import and return a module that the extra `stillhouse[accelerate]` installs.

    Raises:
        RuntimeMissing: the module cannot be imported. The error holds the command that installs the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        fix = "pip install 'stillhouse[accelerate]'"
        raise RuntimeMissing(f"{name.partition('.')[0]} cannot be used here: {error}", fix=fix) from error
