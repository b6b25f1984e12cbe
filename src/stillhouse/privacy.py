"""The telemetry of libraries, switched off before any of them is imported; see docs/privacy.md."""

import os
import sys

SWITCHES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: a device id, the interpreter's path, names of models, errors
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, hf_xet, transformers, diffusers: sessions, versions, transfers
}
"""Environment variables, with the value that each library takes as off."""
REPORTER = "openvino_telemetry"
"""Package by which OpenVINO and NNCF report every import. No variable stops that; neither library needs the package."""


def switch_off_telemetry() -> None:
    """Switch off the telemetry of libraries that Stillhouse uses, in this process and in its children.

    Loads no library. A variable that is set already keeps its value, and a package that is loaded already stays.
    """
    was_set = "ORT_DISABLE_TELEMETRY" in os.environ
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type] # None: its import fails
    # onnxruntime reads the variable once, when imported; from then on, only events after the first can be stopped.
    if not was_set and (loaded := sys.modules.get("onnxruntime")):
        loaded.disable_telemetry_events()
