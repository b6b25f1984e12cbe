"""One picture of Stable Diffusion XL's sizes by each engine that fits into memory: `python -m benchmarks.race.sdxl`.

1024x1024 pixels, 8 guided steps of DDIM, random weights. Each engine runs in a process of its own, one after the other,
since two do not fit beside each other; it opens, generates the picture, and ends. The files take 25 GB of disk. Another
call goes on with the engines that have no result yet.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.race.genai_engine import noise_generator
from benchmarks.race.linked_pipeline import link_pipeline
from benchmarks.race.sdxl_files import write_checkpoint, write_genai_directory
from benchmarks.race.stopwatch import Timed
from benchmarks.race.subject import BUILD, initial_noise
from benchmarks.record import read_earlier, write_results
from stillhouse.measure.memory import peak_resident_bytes

NAME = "race_sdxl"
SIDE, STEPS, GUIDANCE = 1024, 8, 5.0
PROMPT = "a photograph of an astronaut riding a horse"
CHECKPOINT, PIPELINE, REWRITTEN = (BUILD / "sdxl" / name for name in ("checkpoint", "pipeline", "rewritten"))
GENAI = BUILD / "sdxl" / "genai"
_COMMAND = (sys.executable, "-m", "benchmarks.race.sdxl", "--part")
_TIMEOUT = 3600
Timings = dict[str, Any]
"""Seconds of opening, of the picture, of an evaluation and of decoding, and the precision."""


def main() -> None:
    """Prepare the files that are missing, and run the engines that have no results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=tuple(ENGINES))
    parser.add_argument("--again", action="store_true", help="run engines that have results, too")
    parser.add_argument("--part", choices=(*_FILES, *ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        if arguments.part in _FILES:
            _FILES[arguments.part]()
        else:
            timings = ENGINES[arguments.part]()
            print(json.dumps({**timings, "peak_bytes": peak_resident_bytes(os.getpid())}))
        return
    for name in _FILES:
        mark = BUILD / "sdxl" / f"{name}.done"
        if not mark.exists():
            subprocess.run([*_COMMAND, name], stdout=sys.stderr, timeout=_TIMEOUT, check=True)
            mark.touch()
    rows = dict(read_earlier(NAME).get("rows", {}))
    for name in arguments.only or ENGINES:
        if arguments.again or name not in rows:
            rows[name] = _spawn(name)
            print(f"{name}: {rows[name]}", flush=True)
            write_results(NAME, {"rows": {engine: rows[engine] for engine in ENGINES if engine in rows}})


def _spawn(name: str) -> Timings:
    """Run an engine in a process of its own; return what it printed, or the reason why it failed."""
    done = subprocess.run([*_COMMAND, name], stdout=subprocess.PIPE, timeout=_TIMEOUT, check=False)
    if done.returncode:
        return {"reason": f"its process ended with code {done.returncode}"}
    found: Timings = json.loads(done.stdout.splitlines()[-1])
    return found


def _run_diffusers(precision: str) -> Timings:
    import torch
    from diffusers import StableDiffusionXLPipeline

    dtype = torch.float32 if precision == "f32" else torch.bfloat16
    began = perf_counter()
    pipeline = StableDiffusionXLPipeline.from_pretrained(CHECKPOINT, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    if precision == "bf16":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    evaluate = pipeline.unet.forward = Timed(pipeline.unet.forward)
    decode = pipeline.vae.decode = Timed(pipeline.vae.decode)
    opened = perf_counter()
    noise = torch.from_numpy(initial_noise(SIDE)).to(dtype)
    pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=SIDE, width=SIDE, latents=noise)
    return _timings(precision, began, opened, evaluate.take(), sum(decode.take()))


def _run_genai() -> Timings:
    import openvino_genai

    began = perf_counter()
    pipeline = openvino_genai.Text2ImagePipeline(str(GENAI))
    pipeline.reshape(1, SIDE, SIDE, GUIDANCE)
    pipeline.compile("CPU")
    opened = perf_counter()
    generator = noise_generator(initial_noise(SIDE))
    pipeline.generate(
        PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, width=SIDE, height=SIDE, generator=generator
    )
    metrics = pipeline.get_performance_metrics()
    evaluation, decoding = metrics.get_unet_infer_duration().mean, metrics.get_vae_decoder_infer_duration()
    return _timings("engine's default", began, opened, (evaluation / 1000,), decoding / 1000)


def _run_stillhouse(directory: Path) -> Timings:
    import stillhouse
    from stillhouse.core import ImageRequest
    from stillhouse.pipelines.roles import DENOISER

    began = perf_counter()
    pipeline = stillhouse.load(directory)
    component = pipeline.manifest.components[DENOISER]
    opened = perf_counter()
    advance, finish = Timed(pipeline.advance), Timed(pipeline.finish)
    request = ImageRequest(PROMPT, steps=STEPS, guidance=GUIDANCE, sampler="ddim", width=SIDE, height=SIDE, seed=0)
    trajectory = pipeline.start(request, noise=initial_noise(SIDE)[0])
    while not trajectory.is_done:
        advance([trajectory])
    finish(trajectory)
    precision = f"{component.backend} {component.precision}"
    return _timings(precision, began, opened, advance.take(), sum(finish.take()))


def _timings(precision: str, began: float, opened: float, evaluations: tuple[float, ...], decoding: float) -> Timings:
    """Return the row of an engine; the picture ends now. Networks that are opened late count to the picture."""
    return {
        "precision": precision,
        "load_seconds": opened - began,
        "seconds": perf_counter() - opened,
        "evaluation": median(evaluations),
        "decoding": decoding,
    }


def _import() -> None:
    command = [sys.executable, "-m", "stillhouse", "import", str(CHECKPOINT), "-o", str(PIPELINE), "--force"]
    subprocess.run(command, check=True)


def _rewrite() -> None:
    """Write the imported pipeline with all networks in bf16, and layers and attention that need no other graph."""
    from stillhouse.pipelines.manifest import read_manifest
    from stillhouse.pipelines.roles import DECODER, DENOISER

    components = read_manifest(PIPELINE).components
    fast = {name: replace(item, backend="openvino", precision="bf16") for name, item in components.items()}
    fast[DENOISER] = replace(fast[DENOISER], settings={"attention": "int8", "layers": "rewritten"}, streams=2)
    fast[DECODER] = replace(fast[DECODER], settings={"layers": "rewritten"}, static=True)
    link_pipeline(PIPELINE, REWRITTEN, fast)


_FILES: Mapping[str, Callable[[], None]] = {
    "checkpoint": partial(write_checkpoint, CHECKPOINT),
    "pipeline": _import,
    "rewritten": _rewrite,
    "genai": partial(write_genai_directory, CHECKPOINT, GENAI),
}
ENGINES: Mapping[str, Callable[[], Timings]] = {
    "diffusers, f32": lambda: _run_diffusers("f32"),
    "diffusers, bf16": lambda: _run_diffusers("bf16"),
    "OpenVINO GenAI, static": _run_genai,
    "Stillhouse, as imported": lambda: _run_stillhouse(PIPELINE),
    "Stillhouse, bf16, attention in int8, rewritten layers": lambda: _run_stillhouse(REWRITTEN),
}


def sdxl_table(results: Mapping[str, Any]) -> str:
    """Return seconds and memory of each engine."""
    head = [f"{SIDE}x{SIDE}, {STEPS} guided steps", "ran in", "picture", "an evaluation", "decoding", "load", "memory"]
    rows = results["rows"]
    lines = [
        [
            name,
            row["precision"],
            f"{row['seconds']:.0f} s",
            f"{row['evaluation']:.1f} s",
            f"{row['decoding']:.1f} s",
            f"{row['load_seconds']:.0f} s",
            f"{row['peak_bytes'] / 2**30:.1f} GiB",
        ]
        for name, row in rows.items()
        if "seconds" in row
    ]
    failed = "".join(f"\n{name}: {row['reason']}.\n" for name, row in rows.items() if "reason" in row)
    return markdown_table(head, lines) + failed


if __name__ == "__main__":
    main()
