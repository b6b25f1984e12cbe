"""Start of Triton with a model repository, without pytriton."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.launch import ServerCommand
from benchmarks.serving.triton.environment import ensure_environment

_HERE = Path(__file__).parent
_PATHS_SCRIPT = """
import sys, sysconfig
print(sysconfig.get_path("purelib"), sysconfig.get_config_var("LIBDIR"), "%d.%d" % sys.version_info[:2], sep="\\n")
"""


def triton_command(models: Sequence[str], port: int, workspace: Path) -> ServerCommand:
    """Return the command of a server with these models, each the embedded model in a separate process.

    Raises:
        RuntimeMissing: there is no environment and it cannot be created.
    """
    venv = ensure_environment()
    site, lib, minor = _python_paths(venv)
    bundle = Path(site, "pytriton", "tritonserver")
    backends = workspace / "backends"
    shutil.copytree(bundle / "backends", backends)
    stub = bundle / "python_backend_stubs" / minor / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python" / "triton_python_backend_stub")
    for model in models:
        (workspace / "repository" / model / "1").mkdir(parents=True)
        shutil.copy(_HERE / "config.pbtxt", workspace / "repository" / model)
        shutil.copy(_HERE / "model.py", workspace / "repository" / model / "1")
    region = f"stillhouse_{os.getpid()}_{port}_"
    command = [
        str(bundle / "bin" / "tritonserver"),
        f"--model-repository={workspace / 'repository'}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--exit-timeout-secs=10",
        f"--backend-config=python,shm-region-prefix-name={region}",
        "--backend-config=python,shm-default-byte-size=4194304",
    ]
    environment = {
        **os.environ,
        # The stub takes its packages from the python3 that it finds first, and this interpreter's own library must
        # come before the system's.
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{lib}:{Path(site) / 'nvidia_pytriton.libs'}",
        # This project counts on numpy 2's rules for the type of a result; numpy 1.26 knows them under this name.
        "NPY_PROMOTION_STATE": "weak",
    }
    return ServerCommand(command, environment, shared=region)


def _python_paths(venv: Path) -> list[str]:
    command = [str(venv / "bin" / "python"), "-c", _PATHS_SCRIPT]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
