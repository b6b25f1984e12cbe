"""The container files: valid by the Compose specification, for Auto-Acceleration's folders, and fit to be built."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillhouse.accelerate.auto_acceleration.config import find_layout
from tests.accelerate import networks

ROOT = Path(__file__).parents[1]
CPU, GPU = ROOT / "compose.yaml", ROOT / "compose.gpu.yaml"
COMPILED = ("int8_attention", "group_norm")
"""Names of the files in C."""
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def service(path: Path) -> dict[str, Any]:
    """The only service of a compose file."""
    (found,) = yaml.safe_load(path.read_bytes())["services"].values()
    assert isinstance(found, dict)
    return found


def checked(*paths: Path) -> subprocess.CompletedProcess[str]:
    """The files held against the schema of the Compose specification, which check-jsonschema brings with it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def merged(under: Any, over: Any) -> Any:
    """Two compose files as one: mappings key by key, anything else replaced."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return over
    return {**under, **over, **{key: merged(under[key], over[key]) for key in under.keys() & over.keys()}}


def sources() -> list[str]:
    """What the Dockerfile copies."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_both_files_are_valid_apart_and_together(tmp_path: Path) -> None:
    both = tmp_path / "compose.yaml"
    both.write_text(yaml.safe_dump(merged(*(yaml.safe_load(path.read_bytes()) for path in (CPU, GPU)))))
    done = checked(CPU, GPU, both)
    assert done.returncode == 0, done.stdout


def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(CPU.read_text(encoding="utf-8").replace("network_mode", "network_made"))
    done = checked(wrong)
    assert done.returncode == 1 and "network_made" in done.stdout


def test_it_reads_input_and_writes_output(tmp_path: Path) -> None:
    mounts = {mount["source"]: mount for mount in service(CPU)["volumes"]}
    assert mounts.keys() == {"./input", "./output"}
    assert mounts["./input"]["read_only"] and "read_only" not in mounts["./output"]
    program, command, option, config = service(CPU)["command"]
    assert (program, command, option) == ("stillhouse", "accelerate", "--config")

    def inside(path: str) -> Path:
        return tmp_path / Path(path).relative_to("/")

    inside(config).parent.mkdir(parents=True)
    inside(config).write_text("device: cpu")
    model = inside(mounts["./input"]["target"]) / "model" / "model.onnx"
    model.parent.mkdir()
    networks.numbered(model)
    layout = find_layout(inside(config))
    assert (layout.model, layout.output) == (model, inside(mounts["./output"]["target"]))


def test_a_missing_folder_is_an_error() -> None:
    assert all(mount["bind"] == {"create_host_path": False} for mount in service(CPU)["volumes"])


def test_it_runs_without_network_and_without_rights() -> None:
    told = service(CPU)
    assert (told["network_mode"], told["cap_drop"]) == ("none", ["ALL"])
    assert told["user"] == "${OWNER:-1000:1000}"
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.MULTILINE) == ["1000:1000"]


def test_the_override_adds_gpus_and_nothing_else() -> None:
    assert yaml.safe_load(CPU.read_bytes())["services"].keys() == yaml.safe_load(GPU.read_bytes())["services"].keys()
    assert service(GPU).keys() == {"deploy", "environment"}
    (device,) = service(GPU)["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_the_image_installs_an_extra_that_there_is() -> None:
    (extras,) = re.findall(r"pip install .*\.whl\)\[([\w,]+)\]", DOCKERFILE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= known.keys()


def test_the_build_is_given_what_it_copies_and_no_more() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in "#"]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == set(sources())
    assert any(fnmatch("src/stillhouse.egg-info", rule) for rule in rules[1:])


def test_what_is_copied_builds_the_package(tmp_path: Path) -> None:
    context, skipped = tmp_path / "context", shutil.ignore_patterns("*.egg-info", "__pycache__", "*.part", "*.so")
    context.mkdir()
    for name in sources():
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=skipped)
        else:
            shutil.copyfile(source, context / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=context, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = context.glob("stillhouse-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        shipped = {name for name in packed.namelist() if name.startswith("stillhouse/")}
    files = (path for path in (context / "src" / "stillhouse").rglob("*") if path.is_file())
    compiled = {name for name in shipped if name.endswith(".so")}
    assert {path.relative_to(context / "src").as_posix() for path in files} == shipped - compiled
    names = {name.partition(".")[0] for name in compiled}
    assert names == ({f"stillhouse/backends/_{name}" for name in COMPILED} if shutil.which("cc") else set())


def test_the_first_stage_has_a_compiler_and_the_second_none() -> None:
    first, second = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert second == f"{first}-slim"


# What Auto-Acceleration gets wrong, as far as it lies in its image; see accelerate/test_config.py.


def test_fault_01_the_processor_needs_no_gpu() -> None:
    """Its only compose file asked for NVIDIA's runtime."""
    told = service(CPU)
    assert not {"runtime", "gpus", "deploy", "devices"} & told.keys()
    assert not re.search("nvidia|cuda|tensorrt", DOCKERFILE)


@pytest.mark.parametrize("what", ["git", "curl", "wget", "http", "ADD", "openvino-dev", "trtexec"])
def test_fault_15_the_image_is_made_of_this_tree(what: str) -> None:
    """It cloned whatever its own repository held that day, with converters that have been withdrawn since."""
    assert what not in DOCKERFILE
    assert set(sources()) >= {"pyproject.toml", "constraints.txt", "src"}
    assert "--constraint constraints.txt" in DOCKERFILE
