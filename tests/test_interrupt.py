"""Ctrl-C is not lost while libraries are imported. Each test sends SIGINT in a process of its own."""

import subprocess
import sys

import pytest

BEGIN = """
import signal, threading
from stillhouse.interrupt import hold_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
WAITS = """
done = False
try:
    with hold_interrupt():
        signal.raise_signal(signal.SIGINT)
        done = True
except KeyboardInterrupt:
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("as expected")
"""
PASSES = """
with hold_interrupt():
    pass
try:
    with hold_interrupt():
        raise ImportError("no such library")
except ImportError:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print("as expected")
"""
OTHER_HANDLER = """
seen = []
signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
with hold_interrupt():
    signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]
print("as expected")
"""
OTHER_THREAD = """
def run():
    with hold_interrupt():  # signal.signal would raise ValueError here
        print("as expected")
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(WAITS, id="an interrupt waits for the end of the block"),
        pytest.param(PASSES, id="without an interrupt nothing is raised, and errors pass"),
        pytest.param(OTHER_HANDLER, id="a handler of a program stays"),
        pytest.param(OTHER_THREAD, id="other threads install no handler"),
    ],
)
def test_an_interrupt_is_held_back(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + script], capture_output=True, text=True, check=False)
    assert done.stdout == "as expected\n", done.stderr
    assert done.returncode == 0
