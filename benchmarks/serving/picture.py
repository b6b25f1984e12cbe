"""Pixels of one image from a server of any protocol."""

import json
from base64 import b64decode
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np

from stillhouse.core import Picture
from stillhouse.images.files import read_picture
from stillhouse.serve.loadgen.protocols import ProtocolName


def request_picture(url: str, protocol: ProtocolName, model: str, prompt: str, seed: int, steps: int) -> Picture:
    """Return the pixels [height, width, 3] of a requested image."""
    if protocol == "openai":
        fields = {"model": model, "prompt": prompt, "seed": seed, "steps": steps}
        response = _answer(f"{url}/v1/images/generations", fields)
        return read_picture(BytesIO(b64decode(response["data"][0]["b64_json"])))
    values = {"PROMPT": ("BYTES", prompt), "SEED": ("INT64", seed), "STEPS": ("INT32", steps)}
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, 1], "data": [value]} for name, (kind, value) in values.items()
    ]
    response = _answer(f"{url}/v2/models/{model}/infer", {"inputs": inputs})
    (image,) = (output for output in response["outputs"] if output["name"] == "IMAGE")
    return np.array(image["data"], np.uint8).reshape(image["shape"][-3:])


def _answer(url: str, fields: object) -> Any:
    request = Request(url, json.dumps(fields).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=120.0) as response:
        return json.load(response)
