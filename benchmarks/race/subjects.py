"""The engines that take part, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.race.diffusers_engine import DiffusersEngine
from benchmarks.race.genai_engine import GenaiEngine
from benchmarks.race.loop_engines import open_onnxruntime, open_openvino
from benchmarks.race.sdcpp_engine import SdcppEngine
from benchmarks.race.stillhouse_engine import StillhouseEngine
from benchmarks.race.subject import (
    ACCELERATED,
    CACHED,
    GENAI,
    GENAI_INT8,
    PIPELINE,
    STUDENT,
    STUDENT_TINY,
    Subject,
)
from stillhouse.pipelines.manifest import read_manifest
from stillhouse.pipelines.roles import DENOISER

REFERENCE = "Stillhouse, accelerated"
"""The subject that all others are timed in turns with."""
IMPORTED, CACHING = "Stillhouse, as imported", "Stillhouse, step caching"
DEFAULT_PEER = "OpenVINO GenAI, as it comes"
EXACT = "diffusers, f32"
"""The subject whose outputs and pictures the others are compared with."""
CACHE_INTERVAL = 2
"""Steps of CACHING from one with all layers to the next."""
STEPS = (1, 3, 8, 20)
"""Numbers of steps of the pictures."""
QUICK: Mapping[int, int] = {1: 4, 3: 3, 8: 2, 20: 3}
SLOW: Mapping[int, int] = {1: 3, 3: 1, 8: 1, 20: 1}


@dataclass(frozen=True, slots=True)
class Entry:
    """One subject.

    Args:
        open: opens the engine.
        rounds: number of pictures by number of steps.
        is_peer: whether the subject is another system as its users run it. Plain loops around graphs are none.
        same_picture: whether the subject starts from the same noise and takes the same sampler's steps.
        has_cache: whether steps are estimated from those before, which changes the picture.
    """

    open: Callable[[], Subject]
    rounds: Mapping[int, int] = field(default_factory=lambda: QUICK)
    is_peer: bool = True
    same_picture: bool = True
    has_cache: bool = False


def _denoiser_graph() -> str:
    """Return the path of the accelerated pipeline's denoiser."""
    return read_manifest(ACCELERATED).components[DENOISER].graph


SUBJECTS: Mapping[str, Entry] = {
    EXACT: Entry(DiffusersEngine, SLOW),
    "diffusers, bf16": Entry(lambda: DiffusersEngine("bf16"), SLOW),
    "diffusers, bf16, compiled": Entry(lambda: DiffusersEngine("bf16", is_compiled=True), SLOW),
    DEFAULT_PEER: Entry(lambda: GenaiEngine(GENAI, is_static=False)),
    "OpenVINO GenAI, static": Entry(lambda: GenaiEngine(GENAI, is_static=True)),
    "OpenVINO GenAI, static, int8 weights": Entry(lambda: GenaiEngine(GENAI_INT8, is_static=True)),
    "OpenVINO GenAI, static, TaylorSeer": Entry(
        lambda: GenaiEngine(GENAI, is_static=True, step_cache=True), has_cache=True
    ),
    "stable-diffusion.cpp, q8_0": Entry(lambda: SdcppEngine("q8_0"), {1: 1, 3: 1, 8: 1, 20: 1}, same_picture=False),
    "plain loop on OpenVINO": Entry(open_openvino, is_peer=False),
    "plain loop on OpenVINO, our int8 graph": Entry(
        lambda: open_openvino(ACCELERATED / _denoiser_graph()), is_peer=False
    ),
    "plain loop on onnxruntime": Entry(open_onnxruntime, SLOW, is_peer=False),
    IMPORTED: Entry(lambda: StillhouseEngine(PIPELINE), is_peer=False),
    CACHING: Entry(lambda: StillhouseEngine(CACHED, cache_interval=CACHE_INTERVAL), is_peer=False, has_cache=True),
    REFERENCE: Entry(lambda: StillhouseEngine(ACCELERATED), {}, is_peer=False),
}
STUDENTS: Mapping[str, Entry] = {
    "Stillhouse, student": Entry(lambda: StillhouseEngine(STUDENT, guidance=1.0)),
    "Stillhouse, student, tiny decoder": Entry(lambda: StillhouseEngine(STUDENT_TINY, guidance=1.0)),
}
"""What `benchmarks.race.students` times."""
