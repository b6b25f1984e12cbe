"""What a picture costs, from plain diffusers to a student: `python -m benchmarks.cost shapes` (or `sd15`).

Every way is a process of its own that takes turns with plain diffusers. `shapes`: the embedded model and its students,
as they come and as `stillhouse accelerate` left them. `sd15`: the size of Stable Diffusion 1.5 with random weights and
a tiny decoder, for speed alone: what a network draws does not change how long it takes. There, too, students are
measured as they come and accelerated, within a quarter of an hour; a plain picture is put together of its text, 35
guided evaluations, of which one is timed in each round, and its decoding.
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

from benchmarks.record import write_results
from benchmarks.subject import GUIDANCE, PROMPT, STEPS, GeneratorFactory, GeneratorProcess, run_child
from stillhouse.measure.clock import Ratio, paired_ratio, run_interleaved, summarise
from stillhouse.pipelines.load import EMBEDDED

BUILD = Path("build")
SD15, STUDENTS = BUILD / "sd15" / "pipeline", BUILD / "sd15-students"
WIDTH = 64
"""Of the tiny decoder at the size of Stable Diffusion."""
STUDENTS_STEPS = (3, 1)
DIFFUSERS_BASELINE = "diffusers, torch fp32, vanilla attention"
_DEFAULT_VARIANT = "OpenVINO"
"""In bf16 where the processor has it."""
_TIMESTEPS = (999.0, 666.0, 332.0)
_SWEEP = ("--component", "unet", "--memory", "20GiB", "--budget", "15m", "--min-sqnr", "10")
"""Of the student: its network alone, since random weights draw nothing by which pictures could be compared."""
_NAMES = tuple(EMBEDDED)


def main() -> None:
    """Prepare what is missing, measure in turns, write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("shapes", "sd15"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--as-they-come", action="store_true", help="of sd15: leave the sweep out")
    parser.add_argument("--prepare", action="store_true", help="only make what is measured")
    arguments = parser.parse_args()
    is_small, is_swept = arguments.which == "shapes", not arguments.as_they_come
    if arguments.prepare:
        _prepare_shapes() if is_small else _prepare_sd15(is_swept)
        return
    # In a process that gives its memory back: at the size of Stable Diffusion it holds three networks.
    subprocess.run([sys.executable, "-m", "benchmarks.cost", *sys.argv[1:], "--prepare"], check=True)
    if is_small:
        _measure("cost", [_shapes_variants()], arguments.rounds or 15)
    else:
        # In pairs, since more of them at once do not fit beside each other into 24 GiB.
        _measure("cost_sd15", [(_BASELINE_SD15, way) for way in _sd15_variants(is_swept)], arguments.rounds or 3)


def _measure(name: str, groups: Sequence[Sequence[str]], rounds: int) -> None:
    """All ways of a group take turns; every group has the plain one, which their ratios refer to."""
    threads, plain = len(os.sched_getaffinity(0)), BASELINES[name]
    taken: dict[str, list[float]] = {}
    ratios: dict[str, Ratio] = {}
    for ways in groups:
        with ExitStack() as stack:
            subjects = {way: stack.enter_context(GeneratorProcess(way, threads, "benchmarks.cost")) for way in ways}
            seconds = run_interleaved(subjects, rounds)
        for way, own in seconds.items():
            taken.setdefault(way, []).extend(own)
            ratios[way] = paired_ratio(seconds[plain], own)
    rows = {way: {"seconds": asdict(summarise(own)), "ratio": asdict(ratios[way])} for way, own in taken.items()}
    write_results(name, {"steps": STEPS, "threads": threads, "rounds": rounds, "rows": rows})
    for way, row in rows.items():
        print(f"{way:60} {row['seconds']['median']:8.3f} s  {row['ratio']['value']:.1f}x")


def _prepare_shapes() -> None:
    for name in _NAMES:
        if not (_accelerated_folder(name) / "report.json").is_file():
            command = [sys.executable, "-m", "stillhouse", "accelerate", name, "-o", str(_accelerated_folder(name))]
            subprocess.run([*command, "--budget", "6m"], check=True)


def _prepare_sd15(is_swept: bool) -> None:
    """Students with the guidance inside and a tiny decoder, untrained: they are as quick as trained ones."""
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
        teacher = Denoiser(unet, manifest.schedule, manifest.prediction)
        schedule, prediction = student_parameterization(teacher)
        denoiser = freeze(Denoiser(add_guidance_embedding(unet), schedule, prediction))
        grid = grid_from_timesteps(schedule, _TIMESTEPS)
        student = Student("3-steps", denoiser, {}, grid, "progressive", FitResult(True, 0, 0.0, {}))
        write_student(SD15, student, first, guidance=(1.0, 15.0), decoder=TinyDecoder(manifest.latent, WIDTH))
        made = read_manifest(first)
        quick = {
            name: replace(one, backend="openvino", precision="auto", static=True)
            for name, one in made.components.items()
        }
        write_manifest(first, replace(made, components=quick))
    faster = _student_folder(STUDENTS_STEPS[0], "faster")
    if is_swept and not (faster / "report.json").is_file():
        command = [sys.executable, "-m", "stillhouse", "accelerate", str(first), "-o", str(faster)]
        subprocess.run([*command, *_SWEEP], check=True)
    for steps in STUDENTS_STEPS[1:]:
        for kind in ("", "faster") if is_swept else ("",):
            other = _student_folder(steps, kind)
            if not other.is_dir():
                subprocess.run(["cp", "-al", str(_student_folder(STUDENTS_STEPS[0], kind)), str(other)], check=True)
                made = read_manifest(other)
                assert made.distilled is not None
                learnt = replace(made.distilled, timesteps=_TIMESTEPS[:steps])
                (other / "stillhouse.json").unlink()  # a link to the other's
                write_manifest(other, replace(made, distilled=learnt, defaults=replace(made.defaults, steps=steps)))


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
    """Seconds of a picture: text, as many guided evaluations as it takes, of which one is timed, and decoding."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor

    torch.set_num_threads(threads)
    pipeline = StableDiffusionPipeline.from_pretrained(SD15, torch_dtype=torch.float32)
    pipeline.unet.set_attn_processor(AttnProcessor())
    latents = torch.zeros(2, 4, 64, 64)

    def timed(work: Callable[[], object]) -> float:
        began = perf_counter()
        work()
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
"""By table, the way that ratios refer to."""
_FACTORIES: Mapping[str, GeneratorFactory] = {
    _BASELINE_SHAPES: _diffusers,
    **{name: _stillhouse(name) for name in _NAMES},
    **{f"{name}, accelerated": _stillhouse(_accelerated_folder(name)) for name in _NAMES},
    _BASELINE_SD15: _diffusers_sd15,
    **{
        f"student of {steps} step{'s' if steps > 1 else ''}, tiny decoder, {told}": _stillhouse(
            _student_folder(steps, kind), width=512, height=512
        )
        for steps in STUDENTS_STEPS
        for kind, told in (("", _DEFAULT_VARIANT), ("faster", "accelerated"))
    },
}


def _shapes_variants() -> list[str]:
    return [way for way in _FACTORIES if way == _BASELINE_SHAPES or way.startswith("shapes")]


def _sd15_variants(is_swept: bool) -> list[str]:
    return [way for way in _FACTORIES if way.startswith("student") and (is_swept or way.endswith(_DEFAULT_VARIANT))]


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in _FACTORIES and sys.argv[2].isdigit():
        run_child(_FACTORIES, warm_up=1)
    else:
        main()
