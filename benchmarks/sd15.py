"""Stable Diffusion 1.5's sizes with random weights, from checkpoint to picture: seconds and peak memory.

`python -m benchmarks.sd15` writes an 860 M-parameter checkpoint in half precision, imports it, generates one 512x512
picture, and prints seconds and peak memory of each stage. Every stage runs in its own process.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.record import write_results

PROMPT = "a photograph of an astronaut riding a horse"
_LIMIT = 16 * 2**30


def main() -> None:
    """Run the stages one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/sd15"))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="do not delete the checkpoint and the pipeline")
    parser.add_argument("--stage", choices=tuple(_STAGES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        _run(arguments.stage, arguments.folder, arguments.steps)
        return
    stages = {name: _spawn(name, arguments) for name in _STAGES}
    peak = max(stage["peak_bytes"] for stage in stages.values())
    write_results("sd15", {"stages": stages, "steps": arguments.steps, "peak_bytes": peak, "limit_bytes": _LIMIT})
    print(f"peak memory {peak / 2**30:.2f} GiB of {_LIMIT / 2**30:.0f} GiB allowed")
    if not arguments.keep:
        for folder in ("checkpoint", "pipeline"):
            shutil.rmtree(arguments.folder / folder)
    sys.exit(peak > _LIMIT)


def _spawn(stage: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = ["--stage", stage, "--folder", str(arguments.folder), "--steps", str(arguments.steps)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.sd15", *options], stdout=subprocess.PIPE, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{stage:8} {measured['seconds']:7.1f} s   peak {measured['peak_bytes'] / 2**30:5.2f} GiB", flush=True)
    return measured


def _run(stage: str, folder: Path, steps: int) -> None:
    began = perf_counter()
    extra = _STAGES[stage](folder, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": perf_counter() - began, "peak_bytes": peak, **extra}))


def _write(folder: Path, steps: int) -> dict[str, Any]:
    """Write a checkpoint with the layout and the sizes of Stable Diffusion 1.5 and random weights."""
    import torch
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from stillhouse.shapes.train.tokenizer import build_tokenizer

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    cross, no_cross = "CrossAttnDownBlock2D", "DownBlock2D"
    unet = UNet2DConditionModel(
        sample_size=64,
        cross_attention_dim=768,
        attention_head_dim=8,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=(cross, cross, cross, no_cross),
    )
    vae = make_autoencoder(sample_size=512)
    text_config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    )
    # The tokenizer is the embedded model's: no vocabulary can be downloaded, and random weights need none.
    tokenizer = build_tokenizer(length=77)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "checkpoint", max_shard_size="100GB")
    return {"parameters": sum(weight.numel() for weight in unet.parameters())}


def make_autoencoder(**settings: Any) -> Any:
    """Return the autoencoder of Stable Diffusion 1.5 and XL with random weights.

    Args:
        settings: further arguments of AutoencoderKL, such as sample_size in pixels.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        **settings,
    )


def _import(folder: Path, steps: int) -> dict[str, Any]:
    from stillhouse.convert.import_model import ImportOptions, import_model

    import_model(folder / "checkpoint", folder / "pipeline", ImportOptions(force=True))
    return {}


def _generate(folder: Path, steps: int) -> dict[str, Any]:
    import stillhouse

    pipeline = stillhouse.load(folder / "pipeline")
    result = pipeline.generate(PROMPT, steps=steps, width=512, height=512, seed=0)
    height, width, _ = result.image.shape
    return {"picture": f"{width}x{height}", "picture_seconds": result.seconds}


_STAGES: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "write": _write,
    "import": _import,
    "generate": _generate,
}

if __name__ == "__main__":
    main()
