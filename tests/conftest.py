"""What tests of every room share."""

from collections.abc import Iterator
from importlib import import_module

import pytest


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """torch's number of threads belongs to the process: it is put back. Only tests that ask for it load torch."""
    torch = import_module("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
