"""Code that loads the chosen graph without Stillhouse: lines for plain onnxruntime or OpenVINO, ready to be copied."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.accelerate.calibration.calibration_data import PROBES_FILE, read_probes
from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.records.candidate import NETWORK, PIPELINE
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.views.formatting import printable
from stillhouse.backends.openvino import compile_properties
from stillhouse.backends.runner import RunnerOptions, bind_axes, fix_axes
from stillhouse.backends.signature import Signature, read_signature
from stillhouse.errors import StillhouseError
from stillhouse.pipelines.manifest import TRIALS, Component
from stillhouse.pipelines.roles import DENOISER
from stillhouse.pipelines.runners import opening_shapes

_PROVIDERS = {"cpu": (), "cuda": ("CUDA",), "tensorrt": ("Tensorrt", "CUDA")}
_EXAMPLE_PROMPT = "a red circle"
_OWN_LAYERS = {
    ("attention", "int8"): "# slower than measured: attention in int8 is a part of Stillhouse",
    ("layers", "rewritten"): "# slower than measured: Stillhouse rewrites layers when it opens a graph",
}
"""What plain OpenVINO lacks, by a setting and its value."""
_WHOLE_BATCH = ("results = network(feeds)", "outputs = {name: results[name] for name in names}")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class UseIt:
    """Code that uses what was chosen, to be run in the output directory of `stillhouse accelerate`.

    Args:
        title: what the code does, as a heading.
        code: lines of Python, or a command of a shell.
    """

    title: str
    code: str


def use_it(report: Report, directory: Path) -> tuple[UseIt, ...]:
    """Return the code that uses a report's choice; empty where neither a choice nor a baseline exists.

    For a single network, the code loads the graph and runs it on `feeds`, a dictionary of NumPy arrays by input name.
    For a pipeline, the first code generates a picture, and the second one loads the denoiser.

    Args:
        report: report with the choice.
        directory: output directory; the graphs' paths are relative to it.
    """
    network = _used_trial(report, NETWORK)
    if network is not None:
        return (_load_network(network, report, directory),)
    if not report.chosen or report.trials_of(NETWORK):
        return ()
    prompt = printable(report.prompts[0]) if report.prompts else _EXAMPLE_PROMPT
    generate = UseIt("Generate a picture", f"stillhouse generate --model . {shlex.quote(prompt)}")
    denoiser = None if report.chosen_student else _used_trial(report, DENOISER)
    return (generate, _load_network(denoiser, report, directory)) if denoiser else (generate,)


def _used_trial(report: Report, component: str) -> Trial | None:
    key = report.chosen.get(component) or report.baselines.get(component)
    trials = [trial for trial in report.trials_of(component) if trial.candidate.key == key and trial.graph]
    return trials[0] if trials and component != PIPELINE else None


def _load_network(trial: Trial, report: Report, directory: Path) -> UseIt:
    candidate = trial.candidate
    component = candidate_component(candidate, trial.graph or "", "")
    shapes = _recorded_shapes(directory, candidate.component)
    try:
        signature = read_signature(directory / component.graph)
    except StillhouseError:
        signature = None
    write = {"onnxruntime": _onnxruntime_lines, "openvino": _openvino_lines}.get(candidate.backend)
    threads = component.threads or report.threads
    if write is None or signature is None or (component.static and not shapes):
        lines = ["import stillhouse", "", 'outputs = stillhouse.open_network(".")(feeds)']
        name = candidate.backend if candidate.component == NETWORK else ""
        return UseIt(f"Load the network with Stillhouse{f', on {name}' * bool(name)}", "\n".join(lines))
    title = f"Load the {printable(candidate.component)} with plain {candidate.backend}, without Stillhouse"
    return UseIt(title, "\n".join([*_describe_feeds(signature, shapes), *write(component, threads, signature, shapes)]))


def _recorded_shapes(directory: Path, component: str) -> Shapes:
    """Return the input shapes that a network was measured with, by input name; empty if its probes are missing."""
    file = directory / TRIALS / component / PROBES_FILE
    return {name: array.shape for name, array in read_probes(file)[0].feeds.items()} if file.is_file() else {}


def _describe_feeds(signature: Signature, shapes: Shapes) -> list[str]:
    sizes = [f"{printable(name)} {list(shapes.get(name, axes))}" for name, axes in signature.inputs.items()]
    return [f"# feeds: NumPy arrays by input name, as measured: {', '.join(sizes)}".replace("'", "")]


def _onnxruntime_lines(component: Component, threads: int | None, signature: Signature, shapes: Shapes) -> list[str]:
    """Return lines that open a graph as `backends.ort.open_graph` does, and run it on `feeds`."""
    providers = [
        *(f"{name}ExecutionProvider" for name in _PROVIDERS[component.settings.get("provider", "cpu")]),
        "CPUExecutionProvider",
    ]
    lengths = bind_axes(opening_shapes(component, shapes), signature.inputs)
    spinning = component.settings.get("spinning", "0")
    return [
        "import onnxruntime",
        "",
        "options = onnxruntime.SessionOptions()",
        *([f"options.intra_op_num_threads = {threads}"] if threads else []),
        "options.inter_op_num_threads = 1",
        f'options.add_session_config_entry("session.intra_op.allow_spinning", "{spinning}")',
        *(f"options.add_free_dimension_override_by_name({axis!r}, {length})" for axis, length in lengths.items()),
        f"session = onnxruntime.InferenceSession({component.graph!r}, options, providers={providers!r})",
        "names = [output.name for output in session.get_outputs()]",
        "outputs = dict(zip(names, session.run(names, feeds)))",
    ]


def _openvino_lines(component: Component, threads: int | None, signature: Signature, shapes: Shapes) -> list[str]:
    """Return lines that open a graph as `backends.openvino.open_graph` does, and run it on `feeds`."""
    options = RunnerOptions(component.precision, threads, streams=component.streams, settings=component.settings)
    fixed = fix_axes(opening_shapes(component, shapes), signature.inputs)
    lengths = {name: [axis if isinstance(axis, int) else -1 for axis in shape] for name, shape in fixed.items()}
    if component.streams > 1:
        lengths = {name: [1, *shape[1:]] for name, shape in lengths.items()}
    is_reshaped = component.static or component.streams > 1
    return [
        *(note for setting, note in _OWN_LAYERS.items() if setting in component.settings.items()),
        *(["import numpy", "import openvino"] if component.streams > 1 else ["import openvino"]),
        "",
        "core = openvino.Core()",
        f"model = core.read_model({component.graph!r})",
        *([f"model.reshape({lengths!r})"] if is_reshaped else []),
        f'network = core.compile_model(model, "CPU", {compile_properties(options)!r})',
        f"names = {list(signature.outputs)!r}",
        *(_row_by_row(component.streams) if component.streams > 1 else _WHOLE_BATCH),
    ]


def _row_by_row(streams: int) -> list[str]:
    """Return lines that run each row of a batch by itself, `streams` rows side by side, and join the outputs."""
    return [
        f"queue = openvino.AsyncInferQueue(network, {streams})",
        "rows = [{} for _ in next(iter(feeds.values()))]",
        "",
        "def keep(request, row):",
        "    rows[row] = {name: request.get_tensor(name).data.copy() for name in names}",
        "",
        "queue.set_callback(keep)",
        "for row in range(len(rows)):",
        "    queue.start_async({name: array[row : row + 1] for name, array in feeds.items()}, row)",
        "queue.wait_all()",
        "outputs = {name: numpy.concatenate([row[name] for row in rows]) for name in names}",
    ]
