"""The generated documents hold what the code says, and `--check` names those that do not."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import stillhouse
from stillhouse.cli import COMMANDS
from stillhouse.distill.settings import DistillSettings, read_distill_settings
from stillhouse.serve.settings import ServerSettings, read_server_settings
from tools.docs.__main__ import ROOT, main
from tools.docs.cli_page import help_text
from tools.docs.grpc_api import PROTO, compile_proto
from tools.docs.http_api import openapi_document, request_meanings
from tools.docs.markdown import replace_section
from tools.docs.pages import PAGES
from tools.docs.python_page import entry_point_groups, public_name_summary
from tools.docs.settings_table import settings_without_meaning

METHODS = sorted((method, path) for path, methods in openapi_document()["paths"].items() for method in methods)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with a copy of every generated document."""
    (tmp_path / "docs").mkdir()
    for entry in PAGES:
        shutil.copy(ROOT / entry.path, tmp_path / entry.path)
    return tmp_path


def test_the_tree_holds_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_check_names_a_changed_page_and_the_command_that_writes_it(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (copy / "docs/serving.md").read_text(encoding="utf-8")
    (copy / "docs/serving.md").write_text(settings.replace("| `port` |", "| `ports` |"), encoding="utf-8")
    (copy / "docs/api.md").unlink()
    assert main(["--check"], copy) == 1
    error = capsys.readouterr().err
    assert "docs/serving.md differs" in error
    assert "docs/api.md differs" in error
    assert "docs/cli.md" not in error
    assert "make docs" in error
    assert "`ports`" in (copy / "docs/serving.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", PAGES, ids=lambda entry: entry.path)
def test_check_fails_on_a_change_of_each_page(entry: Any, copy: Path) -> None:
    text = (copy / entry.path).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `") or line.startswith("  -")]
    (copy / entry.path).write_text(text.replace(rows[-1], f"{rows[-1]} changed"), encoding="utf-8")
    assert main(["--check"], copy) == 1


def test_writing_mends_a_changed_page(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "docs/cli.md").write_text("", encoding="utf-8")
    assert main([], copy) == 0
    assert capsys.readouterr().out == "wrote docs/cli.md\n"
    assert (copy / "docs/cli.md").read_text(encoding="utf-8") == page("cli.md")


def test_a_page_without_its_section_is_refused() -> None:
    with pytest.raises(ValueError, match=r"serving\.md has 0 sections <!-- generated: settings -->"):
        replace_section("# Serving\n", "settings", "", "serving.md")


@pytest.mark.parametrize("settings_class", [ServerSettings, DistillSettings])
def test_every_setting_has_a_meaning(settings_class: type) -> None:
    assert settings_without_meaning(settings_class) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    text = page("cli.md")
    assert f"## stillhouse {name}\n" in text
    assert " ".join(help_text(name).split()) in " ".join(text.split())


def test_commands_stand_in_their_order() -> None:
    assert re.findall(r"^## stillhouse (\S+)$", page("cli.md"), re.MULTILINE) == list(COMMANDS)


@pytest.mark.parametrize(("method", "path"), METHODS)
def test_every_operation_is_documented(method: str, path: str) -> None:
    assert f"#### {method.upper()} {path}\n" in page("api.md")


def test_every_request_field_has_a_meaning() -> None:
    schemas = openapi_document()["components"]["schemas"]
    fields = [(name, field) for name, schema in schemas.items() for field in schema["properties"]]
    assert [(name, field) for name, field in fields if not request_meanings(schemas, name).get(field)] == []


def test_the_body_of_an_inference_is_described() -> None:
    operation = openapi_document()["paths"]["/v2/models/{name}/infer"]["post"]
    assert "inputs" in operation["requestBody"]["content"]["application/json"]["schema"]["properties"]


def test_every_grpc_method_is_documented() -> None:
    text = page("api.md")
    methods = [method.name for service in compile_proto(PROTO).service for method in service.method]
    assert methods
    assert [name for name in methods if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", stillhouse.__all__)
def test_every_public_name_is_described(name: str) -> None:
    assert public_name_summary(name)
    assert f"| `{name}` |" in page("python.md")


def test_every_entry_point_group_is_described() -> None:
    groups = entry_point_groups()
    assert "stillhouse.backends" in groups
    assert all(groups.values())


def test_the_example_of_the_server_settings_is_valid(tmp_path: Path) -> None:
    settings = read_server_settings(example("serving.md", tmp_path / "stillhouse.toml"))
    assert list(settings.tiers) == ["free", "pro"]


def test_the_example_of_the_distill_settings_is_valid(tmp_path: Path) -> None:
    assert read_distill_settings(example("distillation.md", tmp_path / "distill.toml")).students["3"].updates


def example(name: str, path: Path) -> Path:
    """Write the TOML block of a page to a file."""
    (block,) = re.findall(r"^```toml\n(.*?)^```", page(name), re.DOTALL | re.MULTILINE)
    assert tomllib.loads(block)
    path.write_text(block, encoding="utf-8")
    return path
