"""The telemetry of libraries, switched off before any of them is imported; see docs/privacy.md."""

import os
import sys

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: a device id, the interpreter's path, names of models, errors
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, hf_xet, transformers, diffusers: sessions, versions, transfers
}
"""Environment variables, each with the value that switches telemetry off. The comments say what would be sent."""
REPORTER = "openvino_telemetry"
"""Package by which OpenVINO and NNCF report every import. No variable stops this, and neither library needs it."""


def switch_off_telemetry() -> None:
    """Switch off the telemetry of libraries that Stillhouse uses, in this process and in its children.

    This loads no library. Variables that are set already keep their values, and packages that are loaded already stay.
    """
    was_set = "ORT_DISABLE_TELEMETRY" in os.environ
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type] # with None here, an import of the package fails
    # onnxruntime reads the variable once, when it is imported. Where it is imported already, its first event can no
    # longer be stopped, only later ones.
    if not was_set and (loaded := sys.modules.get("onnxruntime")):
        loaded.disable_telemetry_events()
