"""Ctrl-C is not lost while libraries are imported."""

import signal
import threading

import pytest

from stillhouse.interrupt import hold_interrupt


def test_an_interrupt_waits_for_the_end_of_the_block() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), hold_interrupt():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_is_raised_and_errors_pass() -> None:
    with hold_interrupt():
        pass
    with pytest.raises(ImportError), hold_interrupt():
        raise ImportError("no such library")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_of_a_program_stays() -> None:
    seen: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with hold_interrupt():
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_install_no_handler() -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            with hold_interrupt():
                pass
        except ValueError as error:  # as signal.signal raises it
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
