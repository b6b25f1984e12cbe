import os
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse import __version__
from stillhouse.cli import BROKEN_PIPE, COMMANDS, INTERRUPTED, main, parse
from tests.cli.conftest import FakePipeline, Refused


def test_missing_command_lists_the_commands(refused: Refused) -> None:
    output = refused()
    assert all(name in output for name in COMMANDS)


def test_unknown_command_lists_the_commands(refused: Refused) -> None:
    output = refused("genrate")
    assert "genrate" in output
    assert all(name in output for name in COMMANDS)


def test_unknown_option_is_named(refused: Refused) -> None:
    assert "--stepz" in refused("generate", "a circle", "--stepz", "3")


def test_options_are_not_abbreviated(refused: Refused) -> None:
    assert "--step" in refused("generate", "a circle", "--step", "3")


def test_error_message_has_three_lines(refused: Refused) -> None:
    assert refused("generate", "a circle", "--steps", "abc").splitlines() == [
        "error: argument --steps: 'abc'",
        "  allowed: a whole number",
        "  see stillhouse generate --help",
    ]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert not left.value.code
    assert capsys.readouterr().out == f"stillhouse {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_options_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert not left.value.code
    assert COMMANDS[command][1][1:] in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_is_quiet(fake: FakePipeline, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.interrupt_after = 4
    assert main(["generate", "a circle", "a cross"]) == INTERRUPTED
    assert capsys.readouterr().err == ""
    assert [file.name for file in here.iterdir()] == ["a-circle-0.png"]


def test_a_warning_is_one_line(fake: FakePipeline, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a very long prompt " * 20]) == 0
    assert capsys.readouterr().err == "warning: this part was cut off: 'end'\n"


def test_nobody_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "stillhouse", "doctor"]
    program = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=settings)
    os.close(write)
    assert (program.returncode, program.stderr) == (BROKEN_PIPE, "")


def test_only_the_command_in_use_is_loaded() -> None:
    code = "import sys; from stillhouse.cli import parse; parse(['doctor']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "stillhouse.cli.doctor" in loaded
    assert not {"stillhouse.cli.generate", "PIL", "rich", "scipy", "torch", "onnxruntime", "openvino"} & set(loaded)


def test_parse_fills_in_what_was_left_out() -> None:
    arguments = parse(["generate", "a circle"])
    assert (arguments.model, arguments.seed, arguments.count, arguments.steps) == ("shapes", 0, 1, None)
