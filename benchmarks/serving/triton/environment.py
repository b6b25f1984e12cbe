"""Virtual environment for Triton: `python -m benchmarks.serving.triton.environment` creates build/triton.

A separate environment, because the Python stub of the wheel silently reads numpy 2 arrays as zeros.
"""

import platform
import subprocess
import sys
from pathlib import Path

from stillhouse.errors import RuntimeMissing

ROOT = Path(__file__).parents[3]
VENV = ROOT / "build" / "triton"
TRITON = "nvidia-pytriton==0.7.0"
_NUMPY = "numpy==1.26.4"
_PIPELINE = ("onnxruntime", "openvino", "tokenizers", "pillow")
"""Packages that `stillhouse.load` needs besides numpy, at the pinned versions."""
_MARKER = VENV / "made"


def ensure_environment() -> Path:
    """Return the environment and create it if needed.

    Raises:
        RuntimeMissing: it cannot be created on this machine.
    """
    if _MARKER.exists() and _MARKER.read_text() == TRITON:
        return VENV
    system = f"{platform.system()} {platform.machine()}"
    if system != "Linux x86_64":
        raise RuntimeMissing(f"Triton on {system}", allowed="Linux x86_64, which is what its wheel is made for")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = VENV / "constraints.txt"
    try:
        _run([sys.executable, "-m", "venv", "--clear", str(VENV)])
        constraints.write_text(_constraints())
        _run([*pip, "--constraint", str(constraints), _NUMPY, *_PIPELINE])
        _run([*pip, "--no-deps", TRITON])
        # The backend's stub does not look at PYTHONPATH.
        (packages,) = VENV.glob("lib/python3*/site-packages")
        (packages / "stillhouse.pth").write_text(f"{ROOT / 'src'}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        raise RuntimeMissing(f"no environment for Triton: {message.strip()[-500:]}") from error
    _MARKER.write_text(TRITON)
    return VENV


def _constraints() -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join([_NUMPY, *(line for line in lines if not line.startswith("numpy=="))]) + "\n"


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    print(ensure_environment())
