"""What only pages and tables need: modules of the extra `accelerate`, loaded when one is made."""

from importlib import import_module
from typing import Any

from stillhouse.errors import RuntimeMissing


def require_extra(name: str) -> Any:
    """The module of that name. RuntimeMissing, with the line that installs it, where it cannot be imported."""
    try:
        return import_module(name)
    except ImportError as error:
        fix = "pip install 'stillhouse[accelerate]'"
        raise RuntimeMissing(f"{name.partition('.')[0]} cannot be used here: {error}", fix=fix) from error
