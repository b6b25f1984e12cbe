"""`python -m stillhouse.shapes.train`: train the model that ships with the package, or resume its training."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import CLIPTextModel, CLIPTokenizer

from stillhouse.cache_directory import cache_path
from stillhouse.fit.fit import fit
from stillhouse.fit.stage import UpdateLog
from stillhouse.pipelines.load import EMBEDDED
from stillhouse.shapes.train.architectures import build_scheduler
from stillhouse.shapes.train.autoencoder import AutoencoderStage
from stillhouse.shapes.train.denoiser import DenoiserStage
from stillhouse.shapes.train.pictures import full_pictures, seeded_rng
from stillhouse.shapes.train.text import TextStage
from stillhouse.shapes.train.tokenizer import build_tokenizer
from stillhouse.shapes.train.training_plan import TrainingPlan


def main() -> None:
    """Train the model that ships with the package, from its checkpoints or else from the shipped weights."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(TrainingPlan().seed)
    plan = TrainingPlan()
    if arguments.updates:
        plan = replace(plan, denoiser=replace(plan.denoiser, updates=arguments.updates))
    deadline = monotonic() + 60 * arguments.minutes if arguments.minutes else None
    shipped = EMBEDDED["shapes"]
    is_fresh = arguments.fresh or (arguments.checkpoints / "autoencoder.checkpoint.pt").exists() or not shipped.exists()
    with _bar() as bar:
        train(plan, arguments.checkpoints, arguments.out, _reporter(bar), deadline, None if is_fresh else shipped)


def train(
    plan: TrainingPlan,
    checkpoints: Path,
    out: Path,
    report: Callable[[UpdateLog], None],
    deadline: float | None = None,
    shipped: Path | None = None,
) -> None:
    """Train autoencoder, text encoder and denoiser in this order, and write a diffusers directory with the EMA weights.

    If the deadline passes before the denoiser's training, the program exits and writes nothing but checkpoints.

    Args:
        plan: hyper-parameters of each network's training.
        checkpoints: directory of checkpoints and logs.
        out: diffusers directory to write.
        report: receives the progress of each network's training.
        deadline: time of `time.monotonic` in seconds after which no update starts; None: no limit.
        shipped: diffusers directory whose autoencoder and text encoder are used unchanged, and from whose weights the
            denoiser's training starts; None: train all three networks from scratch.
    """
    tokenizer = CLIPTokenizer.from_pretrained(shipped / "tokenizer") if shipped else build_tokenizer()
    if shipped:
        encoder = CLIPTextModel.from_pretrained(shipped / "text_encoder", dtype=torch.float32)
        autoencoder = AutoencoderKL.from_pretrained(shipped / "vae", torch_dtype=torch.float32)
    else:
        stages = AutoencoderStage(plan), TextStage(plan, tokenizer)
        if not all(fit(stage, checkpoints, report, deadline).is_done for stage in stages):
            sys.exit("the time limit passed before the denoiser stage; nothing was written; run again to resume")
        encoder, autoencoder = stages[1].network.encoder, stages[0].network
        autoencoder.register_to_config(scaling_factor=_scaling_factor(autoencoder.eval(), plan.seed))
    for network in (encoder, autoencoder):
        network.eval().requires_grad_(False)
    denoiser = DenoiserStage(plan, tokenizer, encoder, autoencoder, checkpoints)
    if shipped:
        denoiser.network.load_state_dict(UNet2DConditionModel.from_pretrained(shipped / "unet").state_dict())
    fit(denoiser, checkpoints, report, deadline)
    save(out, tokenizer, encoder, autoencoder, denoiser.network)


def save(out: Path, tokenizer: Any, text_encoder: Any, autoencoder: Any, denoiser: Any) -> None:
    """Write the networks as a diffusers directory, with the weights in float16 in safetensors files.

    The networks are converted to float16 in place.

    Args:
        out: directory to write.
        tokenizer, text_encoder, autoencoder, denoiser: objects of transformers and diffusers.
    """
    pipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=denoiser,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)


@torch.no_grad()
def _scaling_factor(autoencoder: Any, seed: int) -> float:
    """Return the factor that scales latents to unit variance: 1 / standard deviation of 200 encoded pictures.

    Args:
        autoencoder: diffusers' AutoencoderKL.
        seed: decides the pictures.
    """
    return 1 / float(autoencoder.encode(full_pictures(seeded_rng(seed, 9), 200)).latent_dist.mode().std())


def _reporter(bar: Progress) -> Callable[[UpdateLog], None]:
    tasks: dict[str, TaskID] = {}

    def report(update_log: UpdateLog) -> None:
        stage = update_log.stage
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=update_log.updates)
        bar.update(tasks[stage], completed=update_log.update, description=f"{stage}  loss {update_log.loss:.4f}")
        if update_log.scores:
            scores = "  ".join(f"{name} {value:.3f}" for name, value in update_log.scores.items())
            bar.console.print(f"{stage} {update_log.update}: {scores}")

    return report


def _bar() -> Progress:
    remaining = TimeRemainingColumn(elapsed_when_finished=True)
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), remaining)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stillhouse.shapes.train", description=main.__doc__)
    parser.add_argument("--checkpoints", type=Path, default=cache_path("shapes"), help="directory of checkpoints")
    parser.add_argument("--out", type=Path, default=Path("build/shapes"), help="diffusers directory to write")
    parser.add_argument("--updates", type=int, help="updates of the denoiser; default: 7000")
    parser.add_argument("--minutes", type=float, help="time limit; the next run resumes")
    parser.add_argument("--fresh", action="store_true", help="train from scratch where there is no checkpoint")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
