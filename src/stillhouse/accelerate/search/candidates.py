"""The search space of a network: candidates (backend, precision, options) in the order in which they are measured.

Candidates that cannot run on this machine, or not with this network, are listed, too, with the reason.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.accelerate.evaluation.latency import LONG_CALL_SECONDS
from stillhouse.accelerate.records.candidate import BASELINE_OPTIONS, BATCH_DEPENDENT, NETWORK, Candidate
from stillhouse.accelerate.records.trial import BUDGET_CUT, Trial
from stillhouse.backends.backend import Backend, CandidateContext, CandidateSpec, missing_package
from stillhouse.backends.registry import builtin_backends, find_backend
from stillhouse.backends.runtime import BackendStatus
from stillhouse.gpu import no_gpu_reason
from stillhouse.measure.machine import Machine
from stillhouse.pipelines.manifest import SMALLEST_TILE
from stillhouse.pipelines.roles import DENOISER, ENCODER, TEXT_ENCODERS

_SPOILT_MARGIN = 6.0
"""dB below the bound from which a graph is taken for too inaccurate, whatever the options."""
BASELINE_BACKEND = "onnxruntime"
_BEFORE_PLAIN = 4
"""Number of candidates that are measured before plain onnxruntime where calls are long."""
NO_CALIBRATION = (
    "static quantization needs real inputs besides the probes: give at least two different sets by --inputs"
)
HEAVY_COMPONENTS = (DENOISER, NETWORK)
"""Networks that take most of the time of a picture, so that all their candidates are measured."""
LIGHT_COMPONENTS = (*TEXT_ENCODERS, ENCODER)
"""Networks that run at most once per picture, so that few candidates are measured."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Properties of the machine and of a network that decide which candidates can run.

    Args:
        backends: status of each backend by name, from `backends.registry.backends`.
        machine: hardware of this machine.
        has_torch_modules: whether torch can load the network, because its config.json of diffusers is present.
        has_dynamic_batch: whether the graph accepts any batch size.
        threads: number of threads that may be used.
        decoder_side: longer side in pixels of the pictures that the decoder decodes; None for other networks.
        device: "auto"; "cpu" for CPU candidates only; or the GPU to use: "cuda", "cuda:1".
        has_calibration: whether there are recorded inputs, besides the probes, to calibrate static quantization with.
        axis_ranges: allowed lengths of the graph's named axes, from `options.format_axis_ranges`; empty: fixed lengths.
        rows: batch sizes for which a denoiser with static shapes is opened; empty: the default sizes.
        has_integer_weights: whether the graph as given stores weights as integers, see `Signature.is_quantised`.
    """

    backends: Mapping[str, BackendStatus]
    machine: Machine
    has_torch_modules: bool
    has_dynamic_batch: bool
    threads: int
    decoder_side: int | None = None
    device: str = "auto"
    axis_ranges: str = ""
    rows: tuple[int, ...] = ()
    has_calibration: bool = True
    has_integer_weights: bool = False


def baseline_candidate(component: str, backends: Mapping[str, BackendStatus]) -> Candidate:
    """Return the baseline of a network: the graph as given, in f32, as onnxruntime opens it by default.

    Where onnxruntime is not installed, the result is the graph on the first other backend that can run it as it is.

    Args:
        component: name of the network.
        backends: status of each backend by name, also of those that the user did not select.
    """
    ready = [name for name, status in backends.items() if not status.reason and not find_backend(name).runs_modules]
    if BASELINE_BACKEND in ready or not ready:
        return Candidate(component, BASELINE_BACKEND, options=BASELINE_OPTIONS)
    return Candidate(component, ready[0])


def plan_candidates(
    component: str, environment: Environment, extra_candidates: Iterable[Candidate] = ()
) -> list[Trial | Candidate]:
    """Return a network's candidates in the order of measuring; the baseline is among them where a backend lists it.

    The graph as given, on onnxruntime with the settings of this package, comes first, then `extra_candidates`, then
    those of the backends.

    A candidate that cannot run in `environment` (machine and network) is a trial of status "excluded" with the reason.
    Backends rank their candidates by the speed that was measured on other machines.
    """
    considered = [
        Candidate(component, BASELINE_BACKEND),
        *extra_candidates,
        *_backend_candidates(component, environment),
    ]
    if environment.rows and component == DENOISER:
        considered = [_with_batch_sizes(candidate, environment.rows) for candidate in considered]
    planned: list[Trial | Candidate] = []
    for candidate in considered:
        reason = _exclusion_reason(candidate, environment)
        planned.append(Trial(candidate, "excluded", reason) if reason else candidate)
    return planned


def order_candidates(candidates: Sequence[Candidate], trials: Sequence[Trial]) -> list[Candidate]:
    """Return a network's candidates in the order of measuring.

    Those that an earlier run did not finish come last. Where calls of the network are long, the likeliest candidates
    come before plain onnxruntime, which differs from the baseline by its settings only.

    Args:
        candidates: candidates in the order of `plan_candidates`.
        trials: measurements of the network's candidates so far.
    """
    cut = {trial.candidate.key for trial in trials if trial.reason == BUDGET_CUT}
    if any(trial.seconds and trial.seconds.median > LONG_CALL_SECONDS for trial in trials):
        plain = [item for item in candidates if item == Candidate(item.component, BASELINE_BACKEND)]
        others = [item for item in candidates if item not in plain]
        candidates = [*others[:_BEFORE_PLAIN], *plain, *others[_BEFORE_PLAIN:]]
    return sorted(candidates, key=lambda candidate: candidate.key in cut)


def _with_batch_sizes(candidate: Candidate, rows: Sequence[int]) -> Candidate:
    """Return a copy of a candidate with static shapes that is opened for the given batch sizes.

    A candidate with dynamic shapes is returned unchanged. If the backend can serve all sizes with a single compiled
    engine, the backend's settings for such an engine are added.

    Args:
        candidate: the candidate.
        rows: the batch sizes.
    """
    if candidate.options.get("shapes") != "static":
        return candidate
    batch_settings = find_backend(candidate.backend).batch_settings or {}
    return replace(candidate, options={**candidate.options, **batch_settings, "rows": ",".join(map(str, rows))})


def runnable_candidates(planned: Sequence[Trial | Candidate]) -> Iterator[Candidate]:
    """Yield the candidates in a list of `plan_candidates` that can run, without the excluded ones."""
    return (candidate for candidate in planned if isinstance(candidate, Candidate))


def _context(component: str, backend: Backend, environment: Environment) -> CandidateContext:
    machine = environment.machine
    return CandidateContext(
        role=component,
        cost="high" if component in HEAVY_COMPONENTS else "low" if component in LIGHT_COMPONENTS else "medium",
        status=environment.backends.get(backend.name) or BackendStatus(backend.name, None, (), (), None, ""),
        instructions=machine.instructions,
        gpus=machine.gpus,
        threads=environment.threads,
        device=environment.device,
        has_dynamic_batch=environment.has_dynamic_batch,
        decoder_side=environment.decoder_side,
        axis_ranges=environment.axis_ranges,
        has_integer_weights=environment.has_integer_weights,
    )


def _backend_candidates(component: str, environment: Environment) -> list[Candidate]:
    """Return the candidates that all backends list for a network, sorted by the rank that the backends give them."""
    names = dict.fromkeys([*(backend.name for backend in builtin_backends()), *environment.backends])
    specs = [
        (spec, backend.name)
        for backend in map(find_backend, names)
        for spec in backend.candidates(_context(component, backend, environment))
    ]
    specs.sort(key=lambda entry: entry[0].rank)
    return [Candidate(component, name, spec.recipe, spec.precision, spec.options) for spec, name in specs]


def _exclusion_reason(candidate: Candidate, environment: Environment) -> str:
    """Return a sentence that says why a candidate is excluded without a measurement; empty where the candidate can run.

    Args:
        candidate: the candidate.
        environment: properties of the machine and of the network.
    """
    status = environment.backends.get(candidate.backend)
    if status is None or status.reason:
        cause = status.reason if status else "it was not selected"
        return f"{candidate.backend} is not available: {cause}; {status.install if status else 'see --engine'}"
    backend = find_backend(candidate.backend)
    if backend.runs_modules and not environment.has_torch_modules:
        return f"{backend.name} needs a diffusers directory, and the source is an ONNX file"
    if int(candidate.options.get("tile", SMALLEST_TILE)) < SMALLEST_TILE:
        return f"half of the picture is smaller than the smallest tile, {SMALLEST_TILE} pixels"
    if candidate.is_on_gpu and not environment.machine.gpus:
        return f"there is no GPU: {no_gpu_reason() or 'none was present when the sweep began'}"
    if candidate.is_on_gpu and environment.device == "cpu":
        return "the device cpu was requested"
    spec = CandidateSpec(candidate.recipe, candidate.precision, candidate.options)
    return (
        backend.exclusion(spec, _context(candidate.component, backend, environment))
        or ("" if candidate.is_on_gpu else _cpu_exclusion_reason(candidate, backend, status, environment))
        or _missing_recipe_package(candidate, backend)
    )


def _cpu_exclusion_reason(
    candidate: Candidate, backend: Backend, status: BackendStatus, environment: Environment
) -> str:
    if candidate.is_batch_dependent:
        return BATCH_DEPENDENT
    if candidate.needs_calibration and not environment.has_calibration:
        return NO_CALIBRATION
    precision = candidate.precision
    if precision not in status.precisions and precision != "f32":
        return f"{backend.name} does not support {precision} on this CPU; supported: {', '.join(status.precisions)}"
    if "streams" in candidate.options and not environment.has_dynamic_batch:
        return "the graph has a fixed batch size, so there are no rows to split into streams"
    return ""


def _missing_recipe_package(candidate: Candidate, backend: Backend) -> str:
    recipe = backend.recipes.get(candidate.recipe)
    missing = (missing_package(package, "which builds the graph") for package in (recipe.requires if recipe else ()))
    return next(filter(None, missing), "")


def dominated_reason(candidate: Candidate, trials: Sequence[Trial]) -> str:
    """Return why a candidate need not be measured, because its backend is too slow; empty if it should be measured.

    A backend is too slow if the speed-up of its first timed candidate on the same device (CPU or GPU) is less than
    `dominated_below` (a constant of the backend) times the speed-up of the fastest accepted candidate.

    Args:
        candidate: the candidate to measure next.
        trials: measurements of the network's other candidates.
    """
    backend = candidate.backend
    share = find_backend(backend).dominated_below
    if share is None:
        return ""
    ratios = {trial.candidate.key: trial.ratio for trial in trials if trial.ratio and trial.status == "accepted"}
    own = [
        trial
        for trial in trials
        if (trial.candidate.backend, trial.candidate.is_on_gpu) == (backend, candidate.is_on_gpu)
    ]
    plain = next((trial.ratio for trial in own if trial.ratio), None)
    fastest = max((ratio.value for ratio in ratios.values()), default=0.0)
    if plain is None or plain.high >= share * fastest:
        return ""
    return f"plain {backend} has a speed-up of {plain.value:.2f}, too far below the fastest candidate's {fastest:.2f}"


def spoilt_graph_reason(candidate: Candidate, trials: Sequence[Trial], min_sqnr: float | None) -> str:
    """Return why a candidate need not be measured, because its graph is far too inaccurate; empty if it should be.

    Other options of a backend change the outputs of one graph a little. A graph whose outputs missed the bound by more
    than `_SPOILT_MARGIN` with other options is not measured again.

    Args:
        candidate: the candidate to measure next.
        trials: measurements of the network's other candidates.
        min_sqnr: minimum SQNR in dB of an accepted candidate; None: no bound.
    """
    if not candidate.makes_graph or min_sqnr is None:
        return ""
    for trial in trials:
        worst = trial.worst_fidelity
        is_same_graph = trial.candidate.makes_graph and trial.candidate.artifact_key == candidate.artifact_key
        if is_same_graph and trial.status == "rejected" and worst and worst.sqnr < min_sqnr - _SPOILT_MARGIN:
            return (
                f"its graph has {worst.sqnr:.1f} dB as {trial.candidate.name}, far below the bound of {min_sqnr:g} dB"
            )
    return ""
