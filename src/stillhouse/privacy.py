"""Switches off the telemetry of libraries before they are imported; see docs/privacy.md."""

import os
import sys

SWITCHES = {
    # Without this variable, onnxruntime sends a device id, the path of the interpreter, names of models, and errors.
    "ORT_DISABLE_TELEMETRY": "1",
    # Without this variable, huggingface_hub, hf_xet, transformers and diffusers send sessions, versions and transfers.
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables, each with the value that switches the telemetry of one or more libraries off."""
REPORTER = "openvino_telemetry"
"""Package with which OpenVINO and NNCF report every import of themselves. No environment variable stops these reports,
and both libraries work without the package."""


def switch_off_telemetry() -> None:
    """Switch off the telemetry of libraries that Stillhouse uses, in this process and in its children.

    No library is imported here. Environment variables that are set already keep their values. A telemetry package that
    is imported already stays imported.
    """
    was_set = "ORT_DISABLE_TELEMETRY" in os.environ
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault(REPORTER, None)  # type: ignore[arg-type] # with None here, an import of the package fails
    # onnxruntime reads ORT_DISABLE_TELEMETRY only while it is imported. If onnxruntime was imported before, the
    # variable has no effect, and a call stops the sending of later events.
    if not was_set and (loaded := sys.modules.get("onnxruntime")):
        loaded.disable_telemetry_events()
