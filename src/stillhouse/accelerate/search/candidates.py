"""The search space of a component: candidates in evaluation order, and excluded candidates with their reasons."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stillhouse.accelerate.records.candidate import BATCH_DEPENDENT, NETWORK, Candidate
from stillhouse.accelerate.records.trial import Trial
from stillhouse.backends.backend import Backend, CandidateContext, CandidateSpec, missing_package
from stillhouse.backends.registry import builtin_backends, find_backend
from stillhouse.backends.runtime import BackendStatus
from stillhouse.gpu import no_gpu_reason
from stillhouse.measure.machine import Machine
from stillhouse.pipelines.manifest import SMALLEST_TILE
from stillhouse.pipelines.roles import DENOISER, ENCODER, TEXT_ENCODERS

BASELINE_BACKEND = "onnxruntime"
HEAVY_COMPONENTS = (DENOISER, NETWORK)
"""Components that take most of the time of a picture. They get the full list of candidates."""
LIGHT_COMPONENTS = (*TEXT_ENCODERS, ENCODER)
"""Components that run once per picture, or not at all when their output is cached. They get few candidates."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Properties of the machine and the source that decide which candidates are applicable.

    Args:
        backends: status of each backend by name, from `backends.registry.backends`.
        machine: hardware of this machine.
        has_torch_modules: whether torch can open the components: the source is a diffusers directory.
        has_dynamic_batch: whether the graph accepts any batch size.
        threads: number of threads that may be used.
        decoder_side: longer side in pixels of the recorded decoder calls; None for other components.
        device: see `AccelerateOptions`.
        axis_ranges: ranges of the graph's axes, from `options.format_axis_ranges`.
        rows: batch sizes for which a static denoiser is opened; empty: the default sizes.
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


def plan_candidates(
    component: str, environment: Environment, extra_candidates: Iterable[Candidate] = ()
) -> list[Trial | Candidate]:
    """Return candidates in evaluation order, the baseline first. Excluded candidates are trials with a reason.

    The list has fewer than a hundred entries, ordered by the speed measured on earlier machines.

    Args:
        component: name of the component.
        environment: facts that decide which candidates are applicable.
        extra_candidates: additional candidates, evaluated directly after the baseline.
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


def _with_batch_sizes(candidate: Candidate, rows: Sequence[int]) -> Candidate:
    """Return a static candidate opened for these batch sizes; some backends build one engine for all these sizes."""
    if candidate.options.get("shapes") != "static":
        return candidate
    batch_settings = find_backend(candidate.backend).batch_settings or {}
    return replace(candidate, options={**candidate.options, **batch_settings, "rows": ",".join(map(str, rows))})


def runnable_candidates(planned: Sequence[Trial | Candidate]) -> Iterator[Candidate]:
    """Yield the candidates of a plan that are not excluded."""
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
    )


def _backend_candidates(component: str, environment: Environment) -> list[Candidate]:
    """Return the candidates of all backends in the order of their ranks."""
    names = dict.fromkeys([*(backend.name for backend in builtin_backends()), *environment.backends])
    specs = [
        (spec, backend.name)
        for backend in map(find_backend, names)
        for spec in backend.candidates(_context(component, backend, environment))
    ]
    specs.sort(key=lambda entry: entry[0].rank)
    return [Candidate(component, name, spec.recipe, spec.precision, spec.options) for spec, name in specs]


def _exclusion_reason(candidate: Candidate, environment: Environment) -> str:
    """Return why the candidate cannot or should not run here; empty where the candidate may run."""
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
    """Return why a variant is skipped, where the backend's plain candidate is far slower than the fastest; else ""."""
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
