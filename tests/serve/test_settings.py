"""Settings: file, command line, and error messages with the path of a setting."""

from pathlib import Path

import pytest

from stillhouse.errors import InvalidRequest
from stillhouse.serve.settings import (
    EMBEDDED,
    ServerSettings,
    TierSettings,
    default_tiers,
    read_server_settings,
    replace_pipelines,
)


def write(folder: Path, text: str) -> Path:
    path = folder / "stillhouse.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_file_overrides_defaults(tmp_path: Path) -> None:
    read = read_server_settings(
        write(tmp_path, 'port = 9000\n[tiers.free]\npipeline = "shapes"\nsteps = 3\n[tiers.pro]\npipeline = "shapes"\n')
    )
    assert (read.port, read.host, read.default_tier, list(read.tiers)) == (9000, "127.0.0.1", "free", ["free", "pro"])
    assert read.tiers["free"] == TierSettings("shapes", steps=3)


def test_file_without_tiers_has_default_tiers(tmp_path: Path) -> None:
    assert read_server_settings(write(tmp_path, "port = 9000")).tiers == default_tiers()


def test_paths_are_relative_to_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    read = read_server_settings(write(tmp_path, 'data = "kept"\n[tiers.free]\npipeline = "mine"'))
    assert (read.tiers["free"].pipeline, read.data) == (str(tmp_path / "mine"), str(tmp_path / "kept"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = ", "is not TOML"),
        ("prot = 1", r"\$.prot is not known here"),
        ("port = 'x'", r"\$.port"),
        ("port = 70000", "port is 70000"),
        ("policy = 'fcf'", "did you mean 'fcfs'"),
        ("memory = '8 apples'", "allowed: a size"),
        ("drain_timeout = 'soon'", "allowed: a duration"),
        ("[tiers.free]\nsteps = 3", r"\$.tiers.free.pipeline is missing"),
        ("[tiers.free]\npipeline = 'shapes'\nslo = 0.5", "slo is 0.5"),
        ("[tiers.free]\npipeline = 'shapes'\nalso = ['por']\n[tiers.pro]\npipeline = 'shapes'", "did you mean 'pro'"),
        ("[tiers.'my tier']\npipeline = 'shapes'", "letters, digits"),
        ("tiers = {}", "one tier or more"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_server_settings(write(tmp_path, text))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"there is no file .*; leave --config out"):
        read_server_settings(tmp_path / "none.toml")


def test_command_line_pipelines_keep_tier_settings() -> None:
    settings = replace_pipelines(ServerSettings(default_tiers()), {"pro": "mine"})
    assert list(settings.tiers) == ["pro"]
    assert settings.tiers["pro"].pipeline == "mine"
    assert settings.tiers["pro"].weight == default_tiers()["pro"].weight
    assert settings.tiers["pro"].also == ()
    assert replace_pipelines(settings, {"new": EMBEDDED}).tiers == {"new": TierSettings(EMBEDDED)}


def test_a_settings_file_switches_grpc_off(tmp_path: Path) -> None:
    (tmp_path / "stillhouse.toml").write_text('grpc_port = -1\n[tiers.free]\npipeline = "shapes"\n')
    assert read_server_settings(tmp_path / "stillhouse.toml").grpc_port == -1
    with pytest.raises(InvalidRequest, match="grpc_port is -2; allowed: a whole number from -1 to 65535"):
        ServerSettings(grpc_port=-2)
