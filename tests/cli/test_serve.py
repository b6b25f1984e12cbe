"""`stillhouse serve` and `stillhouse keys`: options override the file; errors exit with 2."""

import logging
import socket
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.cli.serve import declare, make_server_settings
from stillhouse.serve.settings import ServerSettings, default_tiers


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """Restore the process's logging: the command sends all records to the standard error of the moment."""
    root, package = logging.getLogger(), logging.getLogger("stillhouse")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = handlers
    for logger, level in zip((root, package), levels, strict=True):
        logger.setLevel(level)


def parsed(*words: str) -> Namespace:
    parser = ArgumentParser()
    declare(parser)
    return parser.parse_args(words)


def test_without_arguments_the_embedded_model_is_served_here_only() -> None:
    assert make_server_settings(parsed()) == ServerSettings(default_tiers())
    assert make_server_settings(parsed()).host == "127.0.0.1"


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "stillhouse.toml"
    path.write_text('port = 9000\npolicy = "fcfs"\n[tiers.pro]\npipeline = "shapes"\nweight = 3\n')
    settings = make_server_settings(
        parsed("pro=mine", "free=yours", "--config", str(path), "--port", "9001", "--keys", "--grpc-port", "-1")
    )
    assert (settings.port, settings.policy, settings.keys, settings.grpc_port) == (9001, "fcfs", True, -1)
    assert (settings.tiers["pro"].pipeline, settings.tiers["pro"].weight) == ("mine", 3)
    assert settings.tiers["free"].pipeline == "yours"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "pro="], "allowed: TIER=PIPELINE"),
        (["serve", "pro=nowhere"], "there is no model 'nowhere'"),
        (["serve", "--config", "none.toml"], "there is no file none.toml"),
        (["serve", "--policy", "fcffs"], "fcfs"),
        (["serve", "--port", "70000"], "port is 70000"),
        (["serve", "--memory", "much"], "allowed: a size"),
        (["keys", "add", "--tier", "por"], "did you mean 'pro'"),
        (["keys", "add", "--rate", "0"], "rate is 0"),
        (["keys", "revoke"], "needs the name of a key"),
        (["keys", "add", "alice"], "names of new keys are generated"),
        (["serve", "--host", "a..b"], "a..b:8000 cannot be used as a listening address"),
        (["keys", "revoke", "none"], "the key 'none' does not exist or is already revoked"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_started(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_an_address_in_use_is_told_before_anything_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"127.0.0.1:{port} cannot be used as a listening address" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_so_is_one_of_the_second_door(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "stillhouse", "serve", "--port", "0", "--grpc-port", str(port)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be used as a listening address" in done.stderr and "Traceback" not in done.stderr


def test_keys_are_added_listed_and_revoked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "add", "--tier", "pro", "--rate", "1000"]) == 0
    shown = capsys.readouterr().out.strip()
    name = shown.split("-")[1]
    assert main(["keys", "list"]) == 0
    listed = capsys.readouterr().out
    assert name in listed and "1000" in listed and "in use" in listed and shown not in listed
    assert main(["keys", "revoke", name]) == 0
    main(["keys", "list"])
    assert "revoked" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["list"], ["revoke", "k_one"]])
def test_keys_of_a_directory_that_is_no_servers_are_refused_and_nothing_is_made(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", *arguments]) == 2
    assert "stillhouse-data has no stillhouse.sqlite3" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
