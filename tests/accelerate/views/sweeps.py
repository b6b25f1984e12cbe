"""Example reports with every status and unusual texts; the numbers are only plausible."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Bounds, Report
from stillhouse.accelerate.records.trial import PictureFidelity, Status, Trial
from stillhouse.core import Picture
from stillhouse.images.files import write_png
from stillhouse.measure.clock import Ratio, Timing
from stillhouse.measure.fidelity import Fidelity
from stillhouse.measure.machine import Machine

MIB = 1 << 20
MACHINE = Machine("AMD EPYC", 2, 24 << 30, ("avx2", "fma", "f16c"), "Linux x86_64", "3.11")
HOSTILE = '=HYPERLINK("http://example.invalid/")'
PROMPTS = ("a small red circle left of a big blue square", "two green triangles", 'a <b>bold</b> & "quoted" star')


def example_timing(milliseconds: float) -> Timing:
    return Timing(milliseconds / 1e3, 1.17e-3 * milliseconds, 0.96e-3 * milliseconds, 30)


def example_fidelity(sqnr: float, mae: float = 0.01, nonfinite: int = 0) -> dict[str, Fidelity]:
    cosine = 1 - 10 ** (-sqnr / 10) / 2 if sqnr > 0 else 0.1
    return {
        f"noise {level}": Fidelity(sqnr + gain, cosine, mae, 9 * mae, nonfinite)
        for level, gain in (("0.9", 0.0), ("0.5", 1.4), ("0.1", 2.9))
    }


def example_trial(
    candidate: Candidate,
    status: Status = "accepted",
    reason: str = "",
    milliseconds: float | None = None,
    base: float = 96.0,
    sqnr: float | None = None,
    peak: int = 400,
    pictures: PictureFidelity | None = None,
) -> Trial:
    """Return a trial, timed where `milliseconds` is given."""
    is_timed = milliseconds is not None
    speed = base / (milliseconds or base)
    rows = {"1": 1.0, "2": 0.8, "4": 0.71, "8": 0.7}
    return Trial(
        candidate,
        status,
        reason,
        executed=None if sqnr is None else "int8" if "int8" in candidate.recipe else candidate.precision,
        census={"int8": 41, "f32": 189} if "int8" in candidate.recipe and sqnr is not None else {},
        fidelity=example_fidelity(sqnr) if sqnr is not None else {},
        pictures=pictures,
        seconds=example_timing(milliseconds) if milliseconds is not None else None,
        ratio=Ratio(speed, 0.93 * speed, 1.06 * speed) if is_timed else None,
        batch={count: (milliseconds or 0) * share / 1e3 for count, share in rows.items()} if is_timed else {},
        build_seconds=3.2 if status != "excluded" and candidate.recipe != "f32" else None,
        open_seconds=0.61 if is_timed else None,
        first_seconds=0.2 if is_timed else None,
        peak_bytes=peak * MIB if is_timed else None,
        file_bytes=85 * MIB if is_timed else None,
        artifact=f"artifacts/{candidate.component}/{candidate.key}" if candidate.recipe != "f32" else None,
        log=f"logs/{candidate.key}.txt" if status != "excluded" else None,
        reproduce=f"logs/{candidate.key}.py" if status != "excluded" else None,
    )


def example_picture_fidelity(
    psnr: float, ssim: float, score: float | None = None, files: tuple[str, ...] = ()
) -> PictureFidelity:
    return PictureFidelity(48, psnr, psnr - 5, ssim, 0.1, score, None if score is None else 0.927, None, files)


def unet_trials() -> tuple[Trial, ...]:
    def of(backend: str, recipe: str, precision: str = "f32", **options: str) -> Candidate:
        return Candidate("denoiser", backend, recipe, precision, options)

    ort, ov, torch = "onnxruntime", "openvino", "torch"
    return (
        example_trial(of(ort, "f32"), milliseconds=96, sqnr=999, peak=610),
        example_trial(of(ov, "f32"), milliseconds=44.3, sqnr=114.5, peak=540),
        example_trial(of(ov, "f32", "bf16"), milliseconds=22.3, sqnr=37.1, peak=470),
        example_trial(of(ov, "f32", "bf16", streams="2", shapes="static"), milliseconds=19.8, sqnr=37.1, peak=480),
        example_trial(of(ov, "f16"), milliseconds=45.1, sqnr=61.2, peak=430),
        example_trial(of(ort, "f16"), milliseconds=92, sqnr=59.9, peak=700),
        example_trial(of(ort, "uint8-dynamic"), milliseconds=56.5, sqnr=25.2),
        example_trial(
            of(ort, "int8-dynamic"),
            "rejected",
            "SQNR 9.7 dB is below 20 dB: ConvInteger rounds every row by itself",
            milliseconds=151,
            sqnr=9.7,
        ),
        example_trial(
            of(ov, "int8-static"),
            "rejected",
            "SQNR 14.2 dB is below 20 dB; 4 blocks in f32 mend it, see the row that keeps them",
            milliseconds=12.8,
            sqnr=14.2,
        ),
        example_trial(
            replace(of(ov, "int8-static"), keep=("down.0", "up.3", "mid", "conv_out")), milliseconds=20.4, sqnr=23.5
        ),
        example_trial(of(torch, "f32", attention="sdpa"), milliseconds=131, sqnr=121.0, peak=1900),
        example_trial(
            of(torch, "f32", compile="true"),
            "failed",
            "torch compiles with a C++ compiler, and there is none: install g++",
        ),
        example_trial(
            of(ov, "int4-weights"),
            "failed",
            "it was killed by signal 9 after it took 8.00 GiB: raise --max-memory or leave it out",
        ),
        example_trial(of("tensorrt", "f16"), "excluded", "tensorrt is not installed: pip install tensorrt"),
        example_trial(of(ov, "int8-weights"), "skipped", "the budget of 6 min ended before its turn: --budget 10m"),
        replace(
            example_trial(of(ort, "int8-static"), "rejected", "7 elements of the output are NaN"),
            fidelity={"noise 0.9": Fidelity(-999.0, 0.0, 1.7e308, 1.7e308, 7)},
        ),
    )


def decoder_trials() -> tuple[Trial, ...]:
    base = Candidate("decoder", "onnxruntime")
    return (
        example_trial(base, milliseconds=18.2, base=18.2, sqnr=999),
        example_trial(Candidate("decoder", "openvino"), milliseconds=9.1, base=18.2, sqnr=118),
        example_trial(
            Candidate("decoder", "openvino", "f32", HOSTILE),
            "failed",
            f"{HOSTILE} <script>alert(1)</script> [red]no[/red]",
        ),
    )


def pipeline_trials(files: dict[str, tuple[str, ...]] | None = None) -> tuple[Trial, ...]:
    files = files or {}

    def of(
        name: str,
        status: Status,
        reason: str,
        milliseconds: float,
        psnr: float,
        ssim: float,
        score: float,
        **options: str,
    ) -> Trial:
        candidate = Candidate("pipeline", "stillhouse", "sampling", options=options)
        fidelity = example_picture_fidelity(psnr, ssim, score, files.get(name, ()))
        trial = example_trial(
            candidate, status, reason, milliseconds, 3600.0, None, 720 if name == "plain" else 590, fidelity
        )
        return replace(trial, executed=None, build_seconds=None, open_seconds=None, artifact=None, file_bytes=None)

    return (
        of("plain", "accepted", "", 3600, 99, 1, 0.927, networks="baseline"),
        of("chosen", "accepted", "", 884, 33.4, 0.981, 0.925, networks="chosen"),
        of("cache_interval", "accepted", "", 512, 24.1, 0.937, 0.921, networks="chosen", cache_interval="3"),
        of(
            "steps",
            "rejected",
            "the score falls by 6.2 points, more than 1",
            404,
            17.9,
            0.801,
            0.865,
            networks="chosen",
            sampler="dpm++",
            steps="12",
        ),
    )


def pipeline_report(directory: Path | None = None) -> Report:
    """Return a report of the embedded pipeline's sweep, with pictures written to `directory` if given."""
    files = write_example_pictures(directory) if directory else {}
    trials = (*unet_trials(), *decoder_trials(), *pipeline_trials(files))
    return Report(
        source="shapes",
        goal="latency",
        bounds=Bounds(min_sqnr=20.0, min_psnr=20.0, max_score_drop=1.0),
        machine=MACHINE,
        fingerprint=MACHINE.fingerprint(),
        versions={"stillhouse": "0.2.0", "onnxruntime": "1.31.1", "openvino": "2026.4.1"},
        load=(0.42, 1.7),
        started="2026-03-01T09:30:00+00:00",
        seconds=341.0,
        budget=360.0,
        baselines={
            "denoiser": trials[0].candidate.key,
            "decoder": decoder_trials()[0].candidate.key,
            "pipeline": pipeline_trials()[0].candidate.key,
        },
        trials=trials,
        chosen={
            "denoiser": trials[3].candidate.key,
            "decoder": decoder_trials()[1].candidate.key,
            "pipeline": pipeline_trials()[2].candidate.key,
        },
        probes={
            "denoiser": "4 prompts x 2 seeds at noise 0.9, 0.5 and 0.1",
            "decoder": "8 finished latents",
            "pipeline": "48 pictures",
        },
        prompts=PROMPTS,
        finished=True,
    )


def network_report() -> Report:
    """Return a report of a bare ONNX file's sweep."""
    trials = tuple(replace(trial, candidate=replace(trial.candidate, component="network")) for trial in unet_trials())
    return replace(
        pipeline_report(),
        source="detector.onnx",
        trials=trials,
        baselines={"network": trials[0].candidate.key},
        chosen={"network": trials[3].candidate.key},
        probes={"network": "8 random inputs"},
        prompts=(),
    )


def write_example_pictures(directory: Path) -> dict[str, tuple[str, ...]]:
    """Write pictures of 64 x 64 pixels below `directory`; return their paths by candidate."""
    files: dict[str, tuple[str, ...]] = {}
    for name, shift, grain in (("plain", 0, 0), ("chosen", 0, 3), ("cache_interval", 1, 8), ("steps", 4, 40)):
        files[name] = tuple(f"pictures/{name}/{number}.png" for number in range(3))
        for number, file in enumerate(files[name]):
            write_png(directory / file, example_picture(number, shift, grain))
    return files


def example_picture(number: int, shift: int = 0, grain: int = 0) -> Picture:
    """Return three shapes on a background, slightly shifted, with noise."""
    image = Image.new("RGB", (64, 64), ((240, 238, 230), (28, 30, 40), (250, 222, 120))[number % 3])
    pen = ImageDraw.Draw(image)
    pen.ellipse((8 + shift, 20, 28 + shift, 40), fill=(214, 48, 40))
    pen.rectangle((34, 14 + shift, 58, 38 + shift), fill=(40, 80, 200))
    pen.polygon([(10, 60), (24 + shift, 44), (36, 60)], fill=(40, 150, 70))
    rough = np.random.default_rng(number).normal(0, grain, (64, 64, 3)) if grain else 0
    return np.clip(np.array(image) + rough, 0, 255).astype(np.uint8)
