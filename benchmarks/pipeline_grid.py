"""Exhaustive grid of the ways to generate a picture with the embedded model, for comparison with accelerate's choice.

A way is a network, a sampler, a number of steps, a guidance interval, a step cache and a decoder, or a distilled
student. `python -m benchmarks.pipeline_grid quality` generates 200 held-out captions with every way and writes the
verdicts of the oracle to results/pipeline_grid.json; an interrupted run continues. Quality does not depend on the load
of the machine. `confirm` continues the fastest acceptable ways to 1,000 captions. `time` times them and the plain loop
of onnxruntime in the same rounds, on a quiet machine. `rank` prints the result.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.grid import markdown_table
from benchmarks.pipeline_process import pipeline_process
from benchmarks.record import RESULTS, read_results, write_results
from stillhouse.accelerate.calibration.calibration_data import read_probes
from stillhouse.accelerate.calibration.record_calibration import InputFiles, input_files, record_pipeline_inputs
from stillhouse.accelerate.evaluation.build import build_graph, candidate_component
from stillhouse.accelerate.evaluation.candidate_messages import TimePictures
from stillhouse.accelerate.evaluation.score_decision import paired_score_gain
from stillhouse.accelerate.records.candidate import DECODER, Candidate
from stillhouse.accelerate.search.sampling_variants import request_fields, variant_cost
from stillhouse.accelerate.workspace import f32_components, original_manifest, prepare_workspace
from stillhouse.backends.deepcache_split import split_denoiser
from stillhouse.core import ImageRequest
from stillhouse.measure.clock import paired_ratio, run_interleaved, summarise
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Component, StepCache, read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.roles import DENOISER
from stillhouse.shapes.oracle import score_picture
from stillhouse.shapes.score import generate_batch, held_out_captions

NAME = "pipeline_grid"
CAPTIONS, CONFIRMED_CAPTIONS = 200, 1000
MAX_WAYS = 300
SCORES = ("all_correct", "strict")
MAX_DROP = 1.0
"""Percentage points by which each score of an acceptable way may be lower than the plain loop's."""
FINALISTS, ROUNDS = 20, 30
_BATCH = 25
_WORK = Path("build").absolute() / NAME
_PLAIN = "onnxruntime f32"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to generate a picture.

    Args:
        network: name of the denoiser, a key of `NETWORKS`, or "student, network" for a distilled student.
        options: sampling options that differ from the model's own (sampler, steps, guidance_interval, cache_interval).
        decoder: name of the decoder, a key of `NETWORKS`.
    """

    network: str
    options: tuple[tuple[str, str], ...] = ()
    decoder: str = _PLAIN

    @property
    def name(self) -> str:
        """Return a readable name that no other way has."""
        options = [f"{name.replace('_', ' ')} {value}" for name, value in self.options]
        decoder = [] if self.decoder == _PLAIN else [f"decoder {self.decoder}"]
        return ", ".join([self.network, *options, *decoder])

    @property
    def student(self) -> str | None:
        """Return the name of the way's distilled student; None for the model itself."""
        return self.network.split(", ")[0] if ", " in self.network else None


NETWORKS: Mapping[str, Candidate] = {
    _PLAIN: Candidate(DENOISER, "onnxruntime"),
    "openvino f32": Candidate(DENOISER, "openvino"),
    "openvino bf16": Candidate(DENOISER, "openvino", precision="bf16"),
    "openvino int8": Candidate(DENOISER, "openvino", "int8-static"),
    "openvino int8 bf16": Candidate(DENOISER, "openvino", "int8-static", "bf16"),
    "onnxruntime int8": Candidate(DENOISER, "onnxruntime", "int8-static"),
}
PLAIN_LOOP = Way(_PLAIN)
_ALWAYS = "0-1"
_STEPS = ("25", "20", "16", "12", "10", "8", "6", "5", "4")
_GUIDANCE = (_ALWAYS, "0-0.8", "0-0.6", "0-0.45")


def list_ways() -> list[Way]:
    """Return all ways of the grid: the main axes crossed on one network, promising ones on the others."""
    fast = ("12", "10", "8", "6", "5", "4")
    ways = [
        PLAIN_LOOP,
        *_cross(tuple(NETWORKS)[1:], ("ddim",), ("35",), (_ALWAYS,)),
        *_cross(("openvino bf16",), ("dpmpp_2m", "unipc", "ddim"), _STEPS, _GUIDANCE),
        *_cross(("openvino int8 bf16",), ("dpmpp_2m", "unipc"), ("16", *fast), _GUIDANCE[:3]),
        *_cross(("openvino int8 bf16",), ("ddim",), fast[1:], _GUIDANCE[:3]),
        *_cross(("openvino int8",), ("ddim",), ("8", "6", "5"), _GUIDANCE[:2]),
        *_cross(("openvino f32", "openvino int8"), ("dpmpp_2m",), fast, (_ALWAYS, "0-0.6")),
        *_cross(("onnxruntime int8",), ("dpmpp_2m",), ("12", "10", "8"), (_ALWAYS,)),
        *(Way(f"{student}, {network}") for student in ("shapes-3", "shapes-1") for network in tuple(NETWORKS)[:4]),
        *_cross(
            ("openvino bf16",), ("dpmpp_2m", "unipc"), ("20", "16", "12", "10", "8"), (_ALWAYS, "0-0.6"), ("2", "3")
        ),
        *_cross(("openvino bf16",), ("ddim",), ("35",), _GUIDANCE, ("1", "2", "3")),
        *_cross(("openvino bf16",), ("heun",), ("8", "6", "5", "4"), (_ALWAYS,)),
        *(
            replace(way, decoder=decoder)
            for way in (
                *_cross(("openvino bf16",), ("dpmpp_2m",), ("10", "8", "6", "5"), (_ALWAYS, "0-0.6")),
                *_cross(("openvino bf16", "openvino int8 bf16"), ("ddim",), ("6", "5"), (_ALWAYS, "0-0.8")),
            )
            for decoder in ("openvino bf16", "openvino int8")
        ),
    ]
    unique = list(dict.fromkeys(ways))
    assert len(unique) <= MAX_WAYS
    return unique


def _cross(
    networks: Sequence[str],
    samplers: Sequence[str],
    steps: Sequence[str],
    guidance: Sequence[str],
    caches: Sequence[str] = ("1",),
) -> Iterator[Way]:
    for network, interval, sampler, count, cache in product(networks, guidance, samplers, steps, caches):
        options = {"sampler": sampler, "steps": count, "guidance_interval": interval, "cache_interval": cache}
        own = {"sampler": "ddim", "steps": "35", "guidance_interval": _ALWAYS, "cache_interval": "1"}
        yield Way(network, tuple((name, value) for name, value in options.items() if value != own[name]))


def main() -> None:
    """Run one part of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(_PARTS))
    _PARTS[parser.parse_args().part]()


def _quality() -> None:
    _extend(dict.fromkeys(list_ways(), CAPTIONS))


def _confirm() -> None:
    """Continue the ways that are fastest by their number of evaluations and acceptable so far, and the plain loop."""
    _extend({PLAIN_LOOP: CONFIRMED_CAPTIONS, **dict.fromkeys(_leading_ways(FINALISTS), CONFIRMED_CAPTIONS)})


def _rank() -> None:
    rows = _rows()
    for way in sorted(_measured_ways(rows), key=_predicted_cost):
        row = rows[way.name]
        gains = "  ".join(f"{name} {_format_gain(rows, way, name)}" for name in SCORES)
        seconds = f"{row['seconds']['median']:.4f} s, {row['ratio']['value']:.2f}x" if "seconds" in row else ""
        print(
            f"{'+' if _is_acceptable(rows, way) else '-'} {_predicted_cost(way):6.2f} {way.name:75} {gains} {seconds}"
        )


def grid_table(results: Mapping[str, Any]) -> str:
    """Return a Markdown table of the fastest acceptable ways, and a sentence about all ways.

    Args:
        results: content of results/pipeline_grid.json.
    """
    rows = results["rows"]
    ways = _measured_ways(rows)
    acceptable = [way for way in ways if way != PLAIN_LOOP and _is_acceptable(rows, way)]
    timed = [way for way in acceptable if "ratio" in rows[way.name]]
    shown = sorted(timed, key=lambda way: -rows[way.name]["ratio"]["value"]) or sorted(acceptable, key=_predicted_cost)
    table = markdown_table(
        ["way", "seconds", "against the plain loop", "captions", "all correct, points", "strict, points"],
        [
            [
                way.name,
                f"{row['seconds']['median']:.3f}" if "seconds" in row else "",
                f"**{row['ratio']['value']:.1f}x** ({row['ratio']['low']:.1f} to {row['ratio']['high']:.1f})"
                if "ratio" in row
                else "",
                f"{row['captions']:,}",
                *(_format_gain(rows, way, name) for name in SCORES),
            ]
            for way in shown[:FINALISTS]
            for row in [rows[way.name]]
        ],
    )
    return f"{table}\n{len(ways)} ways, {len(acceptable)} of them at most {MAX_DROP:g} point lower in both scores.\n"


def _format_gain(rows: Mapping[str, Any], way: Way, score: str) -> str:
    mean, low, high = (100 * value for value in _score_gain(rows, way, score))
    return f"{mean:+5.1f} ({low:+5.1f} to {high:+5.1f})"


def _extend(captions: Mapping[Way, int]) -> None:
    """Generate and score the pictures that are missing of each way, and write the results after each way.

    Args:
        captions: number of captions wanted by way.
    """
    grid = Grid()
    for number, (way, count) in enumerate(captions.items()):
        rows = _rows()
        row = rows.get(way.name, {"captions": 0, **dict.fromkeys(SCORES, "")})
        if row["captions"] >= count:
            continue
        started = perf_counter()
        correct = grid.score(way, row["captions"], count)
        for name in SCORES:
            row[name] += "".join("1" if value else "0" for value in correct[name])
        row["captions"] = count
        _write_rows({**rows, way.name: row})
        shares = " ".join(f"{name} {row[name].count('1') / count:.3f}" for name in SCORES)
        print(f"{number + 1} of {len(captions)}: {way.name}: {shares} in {perf_counter() - started:.0f} s", flush=True)


class Grid:
    """Opens the pipeline of a way, and scores its pictures. The pipeline of the last way stays open."""

    def __init__(self) -> None:
        self.directory = prepare_workspace("shapes", _WORK / "workspace").directory
        self.captions = held_out_captions(CONFIRMED_CAPTIONS)
        self.opened: tuple[Any, Pipeline] | None = None
        self.inputs = _record_inputs(self.directory, _WORK / "inputs", (DENOISER, DECODER))

    def score(self, way: Way, begin: int, end: int) -> dict[str, list[bool]]:
        """Return whether each picture of the captions `begin` to `end` is correct, by name of the score."""
        pipeline = self._open(way)
        correct: dict[str, list[bool]] = {name: [] for name in SCORES}
        fields = request_fields(dict(way.options))
        for start in range(begin, end, _BATCH):
            numbers = range(start, min(start + _BATCH, end))
            requests = [
                ImageRequest(str(self.captions[number][1]), seed=number, **fields)  # type: ignore[arg-type]
                for number in numbers
            ]
            for number, picture in zip(numbers, generate_batch(pipeline, requests), strict=True):
                score = score_picture(picture, self.captions[number][1])
                for name in SCORES:
                    correct[name].append(float(getattr(score, name)) == 1.0)
        return correct

    def _open(self, way: Way) -> Pipeline:
        is_cached = "cache_interval" in dict(way.options)
        key = (way.network, way.decoder, is_cached)
        if self.opened is None or self.opened[0] != key:
            self.opened = None
            directory, components, cache = self.networks(way)
            self.opened = key, Pipeline(directory, components=components, step_cache=cache, threads=1)
        return self.opened[1]

    def networks(
        self, way: Way, options: Mapping[str, str] | None = None
    ) -> tuple[Path, dict[str, Component], StepCache | None]:
        """Return the directory, the networks and the step cache of a way.

        Args:
            way: the way.
            options: settings of OpenVINO for the denoiser, such as streams; None: the defaults.
        """
        network = NETWORKS[way.network.split(", ")[-1]]
        network = replace(network, options=options or {}) if network.backend == "openvino" else network
        if way.student:
            directory = find_pipeline(way.student)
            originals = read_manifest(directory).components
            components = {name: Component(item.graph, item.weights) for name, item in originals.items()}
            components[DENOISER] = self._component(network, directory, originals[DENOISER], way.student)
            return directory, components, None
        components = f32_components(self.directory)
        components[DENOISER] = self._component(network, self.directory, components[DENOISER])
        if way.decoder != _PLAIN:
            decoder = replace(NETWORKS[way.decoder], component=DECODER, options={"shapes": "static"})
            components[DECODER] = self._component(decoder, self.directory, components[DECODER])
        if "cache_interval" not in dict(way.options):
            return self.directory, components, None
        graph = self.directory / components[DENOISER].graph  # it may lie in another directory
        split = split_denoiser(graph, layer=-1)
        return self.directory, components, StepCache(str(split.full), str(split.shallow))

    def _component(
        self, candidate: Candidate, directory: Path, original: Component, student: str | None = None
    ) -> Component:
        if student and candidate.makes_graph:
            teacher = prepare_workspace(student, _WORK / student).directory
            inputs = _record_inputs(teacher, _WORK / f"{student}-inputs", (DENOISER,))[DENOISER]
        else:
            inputs = self.inputs[candidate.component]
        graph, _ = build_graph(
            candidate,
            directory / original.graph,
            _WORK / (student or "model") / f"{candidate.component}-{candidate.artifact_key}",
            read_probes(inputs.calibration),
        )
        path = str(graph) if candidate.makes_graph else original.graph
        return candidate_component(candidate, path, original.weights)


_SERVED: Mapping[str, str] = {"streams": "2"}
_STATIC: Mapping[str, str] = {"shapes": "static"}


def _time() -> None:
    """Time the leading ways, each with two streams and with static shapes, and the plain loop in the same rounds."""
    grid, rows = Grid(), _rows()
    request = ImageRequest(str(grid.captions[0][1]), seed=0)
    ways = _leading_ways(FINALISTS)
    with ExitStack() as stack:
        timers: dict[str, Callable[[], float]] = {PLAIN_LOOP.name: _open_timer(grid, PLAIN_LOOP, {}, request, stack)}
        for way, settings in product(ways, (_SERVED, _STATIC)):
            timers[f"{way.name}; {dict(settings)}"] = _open_timer(grid, way, settings, request, stack)
        seconds = run_interleaved(timers, ROUNDS)
    for way in (PLAIN_LOOP, *ways):
        names = [name for name in seconds if name.split("; ")[0] == way.name]
        fastest = min(names, key=lambda name: summarise(seconds[name]).median)
        rows[way.name] |= {
            "timed": fastest,
            "seconds": asdict(summarise(seconds[fastest])),
            "ratio": asdict(paired_ratio(seconds[PLAIN_LOOP.name], seconds[fastest])),
        }
    _write_rows(rows)
    _rank()


def _open_timer(
    grid: Grid, way: Way, settings: Mapping[str, str], request: ImageRequest, stack: ExitStack
) -> Callable[[], float]:
    """Return a function that generates a picture with a way in a process of its own and returns its seconds."""
    directory, components, cache = grid.networks(way, settings)
    folder = _WORK / "timing" / str(abs(hash((way, tuple(settings.items())))))
    defaults = read_manifest(directory).defaults if way.student else original_manifest(directory).defaults
    process = pipeline_process(folder, directory, components, defaults, dict(way.options), cache)
    stack.callback(process.kill)
    process.start()
    fields: Any = request_fields(dict(way.options))
    command = TimePictures(replace(request, **fields), 1)
    return lambda: process.call(command, timeout=600.0)


def _leading_ways(count: int) -> list[Way]:
    """Return the `count` acceptable ways of the lowest predicted cost."""
    rows = _rows()
    acceptable = [way for way in _measured_ways(rows) if way != PLAIN_LOOP and _is_acceptable(rows, way)]
    return sorted(acceptable, key=_predicted_cost)[:count]


def _measured_ways(rows: Mapping[str, Any]) -> list[Way]:
    return [way for way in list_ways() if way.name in rows]


_ROW_COSTS: Mapping[str, float] = {
    _PLAIN: 1.0,
    "openvino f32": 0.6,
    "openvino bf16": 0.4,
    "openvino int8": 0.37,
    "openvino int8 bf16": 0.32,
    "onnxruntime int8": 0.6,
}
"""Seconds of a row of each network relative to the baseline's, rounded from results/accelerate.json; they decide only
which ways are timed."""


def _predicted_cost(way: Way) -> float:
    """Return the predicted seconds of a way's denoiser relative to those of the plain loop."""
    manifest = read_manifest(find_pipeline(way.student or "shapes"))
    rows = variant_cost(manifest, dict(way.options))
    plain = variant_cost(read_manifest(find_pipeline("shapes")), {})
    return _ROW_COSTS[way.network.split(", ")[-1]] * rows / plain


def _is_acceptable(rows: Mapping[str, Any], way: Way) -> bool:
    """Return whether the mean of each score is at most MAX_DROP points below the plain loop's on the same captions."""
    return all(100 * _score_gain(rows, way, name)[0] >= -MAX_DROP for name in SCORES)


def _score_gain(rows: Mapping[str, Any], way: Way, score: str) -> tuple[float, float, float]:
    before, after = (np.frombuffer(rows[name][score].encode(), np.uint8) == ord("1") for name in (_PLAIN, way.name))
    count = min(len(before), len(after))
    return paired_score_gain(before[:count].tolist(), after[:count].tolist())


def _rows() -> dict[str, Any]:
    return dict(read_results(NAME)["rows"]) if (RESULTS / f"{NAME}.json").is_file() else {}


def _write_rows(rows: Mapping[str, Any]) -> None:
    order = {way.name: number for number, way in enumerate(list_ways())}
    write_results(NAME, {"captions": CAPTIONS, "rows": dict(sorted(rows.items(), key=lambda item: order[item[0]]))})


_PARTS: Mapping[str, Callable[[], None]] = {
    "quality": _quality,
    "confirm": _confirm,
    "time": _time,
    "rank": _rank,
}


def _record_inputs(directory: Path, folder: Path, roles: Sequence[str]) -> dict[str, InputFiles]:
    """Record probes and calibration data of some networks, unless this was done before, and return their files."""
    files = {role: input_files(folder / role) for role in roles}
    if not all(inputs.probes.is_file() for inputs in files.values()):
        record_pipeline_inputs(directory, files, (), None)
    return files


if __name__ == "__main__":
    main()
