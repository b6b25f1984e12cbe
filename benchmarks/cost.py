"""Seconds of a picture, from plain diffusers to a student: `python -m benchmarks.cost shapes` (or `sd15`).

Every variant runs in its own process, in interleaved rounds with plain diffusers. `shapes`: the embedded model and its
students, as shipped and as `stillhouse accelerate` left them. `sd15`: the sizes of Stable Diffusion 1.5 with random
weights and a tiny decoder, for speed only. There, too, students are measured as shipped and accelerated (within 15
minutes). The seconds of a plain picture are computed from its text encoding, 35 guided evaluations, of which one is
timed in each round, and its decoding.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.generator_process import GUIDANCE, PROMPT, STEPS, GeneratorFactory, GeneratorProcess, run_child
from benchmarks.record import write_results
from stillhouse.measure.clock import Ratio, paired_ratio, run_interleaved, summarise
from stillhouse.pipelines.load import EMBEDDED

BUILD = Path("build")
SD15, STUDENTS = BUILD / "sd15" / "pipeline", BUILD / "sd15-students"
WIDTH = 64
"""Width of the tiny decoder at the sizes of Stable Diffusion."""
STUDENTS_STEPS = (3, 1)
DIFFUSERS_BASELINE = "diffusers, torch fp32, vanilla attention"
_DEFAULT_VARIANT = "OpenVINO"
"""In bf16 where the processor has it."""
_TIMESTEPS = (999.0, 666.0, 332.0)
_SWEEP = ("--component", "denoiser", "--memory", "20GiB", "--budget", "15m", "--min-sqnr", "10")
"""Options for accelerating the student: only its network, since pictures of random weights cannot be compared."""
_NAMES = tuple(EMBEDDED)


def main() -> None:
    """Prepare what is missing, measure in interleaved rounds, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("shapes", "sd15"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--as-they-come", action="store_true", help="sd15: do not accelerate the students")
    parser.add_argument("--prepare", action="store_true", help="only make the pipelines that are measured")
    arguments = parser.parse_args()
    is_small, is_swept = arguments.which == "shapes", not arguments.as_they_come
    if arguments.prepare:
        _prepare_shapes() if is_small else _prepare_sd15(is_swept)
        return
    # In a process of its own, whose memory is freed: at the sizes of Stable Diffusion it holds three networks.
    subprocess.run([sys.executable, "-m", "benchmarks.cost", *sys.argv[1:], "--prepare"], check=True)
    if is_small:
        _measure("cost", [_shapes_variants()], arguments.rounds or 15)
    else:
        # In pairs, since more processes at once do not fit into 24 GiB.
        _measure(
            "cost_sd15", [(_BASELINE_SD15, variant) for variant in _sd15_variants(is_swept)], arguments.rounds or 3
        )


def _measure(name: str, groups: Sequence[Sequence[str]], rounds: int) -> None:
    """Measure the groups one after the other. Every group has the baseline, to which its ratios refer."""
    threads, baseline = len(os.sched_getaffinity(0)), BASELINES[name]
    times: dict[str, list[float]] = {}
    ratios: dict[str, Ratio] = {}
    for variants in groups:
        with ExitStack() as stack:
            generators = {
                name: stack.enter_context(GeneratorProcess(name, threads, "benchmarks.cost")) for name in variants
            }
            seconds = run_interleaved(generators, rounds)
        for variant, own in seconds.items():
            times.setdefault(variant, []).extend(own)
            ratios[variant] = paired_ratio(seconds[baseline], own)
    rows = {key: {"seconds": asdict(summarise(own)), "ratio": asdict(ratios[key])} for key, own in times.items()}
    write_results(name, {"steps": STEPS, "threads": threads, "rounds": rounds, "rows": rows})
    for key, row in rows.items():
        print(f"{key:60} {row['seconds']['median']:8.3f} s  {row['ratio']['value']:.1f}x")


def _prepare_shapes() -> None:
    for name in _NAMES:
        if not (_accelerated_folder(name) / "report.json").is_file():
            command = [sys.executable, "-m", "stillhouse", "accelerate", name, "-o", str(_accelerated_folder(name))]
            subprocess.run([*command, "--budget", "6m"], check=True)


def _prepare_sd15(is_swept: bool) -> None:
    """Make students with embedded guidance and a tiny decoder, untrained: they are as fast as trained ones."""
    if not SD15.is_dir():
        subprocess.run([sys.executable, "-m", "benchmarks.sd15", "--keep"], check=True)
    import torch
    from diffusers import UNet2DConditionModel

    from stillhouse.diffusion import grid_from_timesteps
    from stillhouse.distill.student import write_student
    from stillhouse.distill.training.decoder import TinyDecoder
    from stillhouse.distill.training.networks import Denoiser, add_guidance_embedding, student_parameterization
    from stillhouse.distill.training.progressive_chain import Student, freeze
    from stillhouse.fit.stage import FitResult
    from stillhouse.pipelines.manifest import read_manifest, write_manifest

    first = _student_folder(STUDENTS_STEPS[0])
    if not first.is_dir():
        STUDENTS.mkdir(parents=True, exist_ok=True)
        manifest = read_manifest(SD15)
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_pretrained(SD15 / "unet", torch_dtype=torch.float32)
        teacher = Denoiser(unet, manifest.sampling.schedule, manifest.sampling.prediction)
        schedule, prediction = student_parameterization(teacher)
        denoiser = freeze(Denoiser(add_guidance_embedding(unet), schedule, prediction))
        grid = grid_from_timesteps(schedule, _TIMESTEPS)
        student = Student("3-steps", denoiser, {}, grid, "progressive", FitResult(True, 0, 0.0, {}))
        write_student(SD15, student, first, guidance=(1.0, 15.0), decoder=TinyDecoder(manifest.latent, WIDTH))
        manifest = read_manifest(first)
        components = {
            name: replace(component, backend="openvino", precision="auto", static=True)
            for name, component in manifest.components.items()
        }
        write_manifest(first, replace(manifest, components=components))
    faster = _student_folder(STUDENTS_STEPS[0], "faster")
    if is_swept and not (faster / "report.json").is_file():
        command = [sys.executable, "-m", "stillhouse", "accelerate", str(first), "-o", str(faster)]
        subprocess.run([*command, *_SWEEP], check=True)
    for steps in STUDENTS_STEPS[1:]:
        for kind in ("", "faster") if is_swept else ("",):
            other = _student_folder(steps, kind)
            if not other.is_dir():
                subprocess.run(["cp", "-al", str(_student_folder(STUDENTS_STEPS[0], kind)), str(other)], check=True)
                manifest = read_manifest(other)
                assert manifest.distilled is not None
                distilled = replace(manifest.distilled, timesteps=_TIMESTEPS[:steps])
                (other / "stillhouse.json").unlink()  # a hard link to the first one's
                defaults = replace(manifest.defaults, steps=steps)
                write_manifest(other, replace(manifest, distilled=distilled, defaults=defaults))


def _student_folder(steps: int, kind: str = "") -> Path:
    return STUDENTS / f"{steps}-{kind}".removesuffix("-")


def _accelerated_folder(name: str) -> Path:
    return BUILD / f"faster-{name}"


def _stillhouse(source: str | Path, **request_fields: int) -> GeneratorFactory:
    def prepare(threads: int) -> Callable[[], object]:
        import stillhouse

        pipeline = stillhouse.load(source, threads=threads)
        return lambda: pipeline.generate(PROMPT, seed=7, **request_fields)

    return prepare


def _diffusers(threads: int) -> Callable[[], object]:
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor

    from stillhouse.pipelines.load import find_pipeline

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(find_pipeline("shapes"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.set_attn_processor(AttnProcessor())
    return lambda: pipeline(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE)


def _diffusers_sd15(threads: int) -> Callable[[], object]:
    """Return a function that measures text encoding, one guided evaluation and decoding, and returns a picture's
    seconds.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(SD15, torch_dtype=torch.float32)
    pipeline.unet.set_attn_processor(AttnProcessor())
    latents = torch.zeros(2, 4, 64, 64)

    def timed(call: Callable[[], object]) -> float:
        began = perf_counter()
        call()
        return perf_counter() - began

    def picture() -> float:
        with torch.inference_mode():
            encode = partial(pipeline.encode_prompt, PROMPT, "cpu", 1, True)
            text = torch.cat(encode())
            encoding = timed(encode)
            step = timed(lambda: pipeline.unet(latents, 500, encoder_hidden_states=text))
            decoding = timed(lambda: pipeline.vae.decode(latents[:1]))
        return encoding + STEPS * step + decoding

    return picture


_BASELINE_SD15 = f"{DIFFUSERS_BASELINE}, {STEPS} guided steps of 512x512"
_BASELINE_SHAPES = f"{DIFFUSERS_BASELINE}, {STEPS} guided steps"
BASELINES = {"cost": _BASELINE_SHAPES, "cost_sd15": _BASELINE_SD15}
"""The variant that ratios refer to, by table."""
_FACTORIES: Mapping[str, GeneratorFactory] = {
    _BASELINE_SHAPES: _diffusers,
    **{name: _stillhouse(name) for name in _NAMES},
    **{f"{name}, accelerated": _stillhouse(_accelerated_folder(name)) for name in _NAMES},
    _BASELINE_SD15: _diffusers_sd15,
    **{
        f"student of {steps} step{'s' if steps > 1 else ''}, tiny decoder, {label}": _stillhouse(
            _student_folder(steps, kind), width=512, height=512
        )
        for steps in STUDENTS_STEPS
        for kind, label in (("", _DEFAULT_VARIANT), ("faster", "accelerated"))
    },
}


def _shapes_variants() -> list[str]:
    return [name for name in _FACTORIES if name == _BASELINE_SHAPES or name.startswith("shapes")]


def _sd15_variants(is_swept: bool) -> list[str]:
    return [name for name in _FACTORIES if name.startswith("student") and (is_swept or name.endswith(_DEFAULT_VARIANT))]


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in _FACTORIES and sys.argv[2].isdigit():
        run_child(_FACTORIES, warm_up=1)
    else:
        main()
