"""Plain loops on OpenVINO and on onnxruntime, around the graphs of a pipeline directory or of OpenVINO GenAI."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.race.plain_loop import PlainLoop
from benchmarks.race.subject import CHANNELS, DOWNSCALE, GENAI, PIPELINE, SIDE, TOKENS, WIDTH

_LATENT = SIDE // DOWNSCALE


def open_openvino(denoiser: Path | None = None) -> PlainLoop:
    """Return a loop on OpenVINO with static shapes and its defaults, around the networks of GENAI.

    Args:
        denoiser: another graph of the denoiser, such as the int8 graph of an accelerated pipeline; None: GENAI's.
    """
    import openvino

    core = openvino.Core()

    def open_network(path: Path, **shapes: list[int]) -> Any:
        model = core.read_model(path)
        model.reshape(shapes)
        return core.compile_model(model, "CPU")

    network = denoiser or GENAI / "unet" / "openvino_model.xml"
    rows = core.read_model(network).input("timestep").partial_shape[0]
    timesteps = 1 if rows.is_static and rows.get_length() == 1 else 2
    unet = open_network(
        network,
        sample=[2, CHANNELS, _LATENT, _LATENT],
        timestep=[timesteps],
        encoder_hidden_states=[2, TOKENS, WIDTH],
    )
    decoder = open_network(GENAI / "vae_decoder" / "openvino_model.xml", latent_sample=[1, CHANNELS, _LATENT, _LATENT])
    encoder = open_network(GENAI / "text_encoder" / "openvino_model.xml", input_ids=[1, TOKENS])
    request, dtype = unet.create_infer_request(), unet.input("timestep").element_type.to_dtype()

    def evaluate(sample: NDArray[np.float32], timestep: int, states: NDArray[np.float32]) -> Any:
        feeds = {
            "sample": sample,
            "timestep": np.full(timesteps, timestep, dtype),
            "encoder_hidden_states": states,
        }
        return request.infer(feeds, share_inputs=True)[0]

    return PlainLoop(
        unet.get_property("INFERENCE_PRECISION_HINT").to_string(),
        lambda ids: encoder({"input_ids": ids})[0],
        evaluate,
        lambda latents: decoder({"latent_sample": latents})[0],
    )


def open_onnxruntime() -> PlainLoop:
    """Return a loop on onnxruntime with its defaults, around the networks of PIPELINE."""
    import onnxruntime

    def open_network(path: str) -> Any:
        return onnxruntime.InferenceSession(str(PIPELINE / path))

    unet, decoder, encoder = map(open_network, ("unet/model.onnx", "vae/decoder.onnx", "text_encoder/model.onnx"))
    dtypes = {value.name: np.dtype(_DTYPES[value.type]) for value in (*unet.get_inputs(), *encoder.get_inputs())}
    latents_name = decoder.get_inputs()[0].name

    def evaluate(sample: NDArray[np.float32], timestep: int, states: NDArray[np.float32]) -> Any:
        feeds = {
            "sample": sample,
            "timestep": np.full(2, timestep, dtypes["timestep"]),
            "encoder_hidden_states": states,
        }
        return unet.run(None, feeds)[0]

    return PlainLoop(
        "f32",
        lambda ids: encoder.run(None, {"input_ids": ids.astype(dtypes["input_ids"])})[0],
        evaluate,
        lambda latents: decoder.run(None, {latents_name: latents})[0],
    )


_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(int32)": "int32"}
