"""Every considered candidate is planned, or excluded with a reason."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from stillhouse.accelerate.evaluation.build import candidate_component
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.trial import BUDGET_CUT, Trial
from stillhouse.accelerate.search.candidates import (
    BASELINE_BACKEND,
    Environment,
    dominated_reason,
    order_candidates,
    plan_candidates,
    runnable_candidates,
    spoilt_graph_reason,
)
from stillhouse.backends import ort, registry
from stillhouse.backends.backend import Backend
from stillhouse.backends.runtime import BackendStatus
from stillhouse.gpu import Gpu
from stillhouse.measure.clock import Timing
from tests.accelerate.trials import MACHINE, make_trial


def status(name: str, *precisions: str, reason: str | None = None) -> BackendStatus:
    return BackendStatus(name, "1.0", ("CPU",), precisions, reason, f"pip install {name}")


ENVIRONMENT = Environment(
    backends={
        "onnxruntime": status("onnxruntime", "f32"),
        "openvino": status("openvino", "f32", "bf16", "auto"),
        "torch": status("torch", "f32", "bf16"),
        "tensorrt": status("tensorrt", reason="not installed"),
        "tensorrt-rtx": status("tensorrt-rtx", reason="there is no GPU: none"),
    },
    machine=replace(MACHINE, instructions=("avx2", "avx512_bf16")),
    has_torch_modules=True,
    has_dynamic_batch=True,
    threads=2,
)


def runnable(component: str, environment: Environment) -> list[Candidate]:
    return list(runnable_candidates(plan_candidates(component, environment)))


def excluded(component: str, environment: Environment) -> dict[str, str]:
    return {
        trial.candidate.name: trial.reason
        for trial in plan_candidates(component, environment)
        if isinstance(trial, Trial)
    }


@pytest.mark.parametrize("component", ["denoiser", "decoder", "text_encoder", "network"])
def test_the_baseline_comes_first_and_nothing_comes_twice(component: str) -> None:
    planned = plan_candidates(component, ENVIRONMENT)
    assert planned[0] == Candidate(component, BASELINE_BACKEND)
    names = [(item.candidate if isinstance(item, Trial) else item).key for item in planned]
    assert len(names) == len(set(names))


def test_every_backend_and_precision_of_the_list_is_considered_for_the_unet() -> None:
    combinations = {
        (candidate.backend, candidate.recipe, candidate.precision) for candidate in runnable("denoiser", ENVIRONMENT)
    }
    for recipe in ("f32", "f16", "int8-static"):
        assert ("onnxruntime", recipe, "f32") in combinations
    for recipe in ("int8-dynamic", "uint8-dynamic"):
        assert "the other pictures in the batch" in excluded("denoiser", ENVIRONMENT)[f"onnxruntime {recipe}"]
        assert recipe in {candidate.recipe for candidate in runnable("network", ENVIRONMENT)}
    for recipe in ("f32", "int8-static", "int8-weights", "int4-weights"):
        assert ("openvino", recipe, "f32") in combinations
    assert {("openvino", "f32", "bf16"), ("torch", "f32", "f32"), ("torch", "f32", "bf16")} <= combinations
    attention = {
        candidate.options.get("attention")
        for candidate in runnable("denoiser", ENVIRONMENT)
        if candidate.backend == "torch"
    }
    assert attention == {"vanilla", "sdpa", "sliced"}


def test_what_the_processor_lacks_is_excluded_with_its_reason() -> None:
    openvino = {**ENVIRONMENT.backends, "openvino": status("openvino", "f32", "auto")}
    lacking = replace(ENVIRONMENT, backends=openvino, machine=MACHINE)
    reasons = excluded("denoiser", lacking)
    assert {
        name.partition(" ")[0]
        for name, reason in reasons.items()
        if "no bf16" in reason or "not support bf16" in reason
    } == {"openvino", "torch"}
    assert all(candidate.precision != "bf16" for candidate in runnable("denoiser", lacking))


def test_what_is_not_installed_is_excluded_with_the_line_that_installs_it() -> None:
    missing = replace(ENVIRONMENT, backends={**ENVIRONMENT.backends, "torch": status("torch", reason="not installed")})
    reasons = excluded("denoiser", missing)
    assert all("pip install torch" in reason for name, reason in reasons.items() if name.startswith("torch"))
    assert all(candidate.backend != "torch" for candidate in runnable("denoiser", missing))


def test_torch_needs_the_modules_and_streams_need_rows() -> None:
    bare = replace(ENVIRONMENT, has_torch_modules=False, has_dynamic_batch=False)
    reasons = excluded("network", bare)
    assert "an ONNX file" in reasons["torch f32, attention sdpa"]
    assert "no rows" in reasons["openvino f32, streams 2"]


def test_an_engine_of_another_package_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Backend("theirs", ort.open_graph, lambda: status("theirs", "f32"), "pip install theirs")
    point = SimpleNamespace(name="theirs", value="theirs:theirs", load=lambda: theirs)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    added = replace(ENVIRONMENT, backends={**ENVIRONMENT.backends, "theirs": status("theirs", "f32")})
    assert Candidate("denoiser", "theirs") in runnable("denoiser", added)


def test_a_decoder_is_tried_in_tiles_of_half_its_side_unless_they_were_too_small() -> None:
    (tiled,) = [
        candidate
        for candidate in runnable("decoder", replace(ENVIRONMENT, decoder_side=512))
        if "tile" in candidate.options
    ]
    assert tiled.options["tile"] == "256"
    assert "smallest tile" in excluded("decoder", replace(ENVIRONMENT, decoder_side=48))["openvino f32, tile 24"]


def test_there_is_nothing_to_offload_to_on_a_processor() -> None:
    assert "in its memory already" in excluded("denoiser", ENVIRONMENT)["torch f32, attention sdpa, offload cpu"]


GPU = Gpu("NVIDIA H200", 141 << 30, "9.0")


def on_gpu(environment: Environment, component: str = "denoiser") -> dict[str, str]:
    """Exclusion reasons of GPU candidates by name; empty for those that are planned."""
    planned = plan_candidates(component, environment)
    excluded_names = {
        item.candidate.name: item.reason for item in planned if isinstance(item, Trial) and item.candidate.is_on_gpu
    }
    return excluded_names | {item.name: "" for item in planned if isinstance(item, Candidate) and item.is_on_gpu}


def test_without_a_gpu_everything_for_one_has_a_row_with_the_reason() -> None:
    reasons = on_gpu(ENVIRONMENT)
    assert len(reasons) > 20
    for name, reason in reasons.items():
        missing = "tensorrt is not available: not installed; pip install tensorrt"
        assert missing in reason if name.startswith("tensorrt ") else "there is no GPU: " in reason
    kinds = {name.partition(" ")[0] for name in reasons}
    assert kinds == {"torch", "onnxruntime", "tensorrt", "tensorrt-rtx"}
    for option in (
        "kernels fused",
        "graphs cuda",
        "compile full",
        "attention vanilla",
        "attention cudnn",
        "offload cpu",
        "provider cuda",
    ):
        assert any(option in name for name in reasons)
    (first,) = on_gpu(ENVIRONMENT, "text_encoder")
    assert first == "torch f32, f16, attention sdpa, device cuda, graphs cuda, shapes static"


@pytest.mark.usefixtures("every_package")
def test_with_a_gpu_what_its_builds_can_do_is_tried_and_before_the_processor() -> None:
    backends = {
        **ENVIRONMENT.backends,
        "torch": replace(status("torch", "f32", "bf16"), devices=("cpu", "cuda:0")),
        "onnxruntime": replace(status("onnxruntime", "f32"), devices=("Tensorrt", "CUDA", "CPU")),
        "tensorrt": replace(status("tensorrt", "auto"), devices=("cuda:0",)),
        "tensorrt-rtx": replace(status("tensorrt-rtx", "auto"), devices=("cuda:0",)),
    }
    environment = replace(ENVIRONMENT, backends=backends, machine=replace(ENVIRONMENT.machine, gpus=(GPU,)))
    names = [candidate.name for candidate in runnable("denoiser", environment)]
    assert names[1] == "torch f32, f16, attention sdpa, device cuda, graphs cuda, shapes static"
    assert [name for name in names[1:] if "cuda" in name or "provider" in name] == names[
        1 : 1 + len(on_gpu(environment))
    ]
    assert set(on_gpu(environment).values()) == {""}


def test_what_is_recorded_or_built_is_for_a_few_sizes_of_batches() -> None:
    """See `pipelines.batch_sizes`: arbitrary sizes would each need a new recording or build while requests wait."""
    for component in ("denoiser", "decoder", "text_encoder"):
        for name in on_gpu(ENVIRONMENT, component):
            assert "shapes static" in name or not ("graphs" in name or "tensorrt " in name.partition(",")[0])


def test_engines_take_what_a_graphs_axes_may_have() -> None:
    environment = replace(ENVIRONMENT, axis_ranges="rows=1-8,height=32-64")
    names = [name for name in on_gpu(environment, "network") if name.startswith("tensorrt")]
    assert names and all("axes rows=1-8,height=32-64" in name and "graphs" not in name for name in names)


def test_sizes_of_batches_are_every_static_unets_and_one_engines() -> None:
    environment = replace(ENVIRONMENT, rows=(1, 2, 8))
    options = {
        candidate.name: candidate.options
        for planned in plan_candidates("denoiser", environment)
        for candidate in [planned.candidate if isinstance(planned, Trial) else planned]
    }
    for name, settings in options.items():
        assert (settings.get("rows") == "1,2,8") == (settings.get("shapes") == "static")
        assert (settings.get("batches") == "together") == name.startswith("tensorrt")
    engine = next(candidate for candidate in options.values() if "batches" in candidate)
    component = candidate_component(Candidate("denoiser", "tensorrt", "f16", "auto", engine), "unet.onnx", "")
    assert component.rows == (1, 2, 8) and component.settings["batches"] == "together" and component.static
    assert not any("rows" in name for name in on_gpu(environment, "decoder"))


def test_a_decoder_on_a_gpu_may_see_a_part_of_a_picture_at_once() -> None:
    tiled = [name for name in on_gpu(replace(ENVIRONMENT, decoder_side=512), "decoder") if "tile 256" in name]
    assert {name.partition(" ")[0] for name in tiled} == {"torch", "tensorrt"}
    assert not [name for name in on_gpu(ENVIRONMENT, "decoder") if "tile" in name]


@pytest.fixture
def every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.backends.backend.find_spec", lambda name: object())


@pytest.mark.usefixtures("every_package")
def test_fp8_is_left_out_where_the_chip_has_none() -> None:
    backends = {**ENVIRONMENT.backends, "torch": replace(status("torch", "f32"), devices=("cpu", "cuda:0"))}
    old = replace(
        ENVIRONMENT, backends=backends, machine=replace(ENVIRONMENT.machine, gpus=(replace(GPU, capability="8.0"),))
    )
    reasons = {name: reason for name, reason in on_gpu(old).items() if "quantize" in name}
    assert [reason for name, reason in reasons.items() if "quantize int8" in name] == [""]
    (reason,) = (reason for name, reason in reasons.items() if "quantize fp8" in name)
    assert reason == "NVIDIA H200 has no fp8: compute capability 8.0"
    engines = {**backends, "tensorrt": replace(status("tensorrt", "auto"), devices=("cuda:0",))}
    (reason,) = (why for name, why in on_gpu(replace(old, backends=engines)).items() if "tensorrt fp8-static" in name)
    assert reason == "NVIDIA H200 has no fp8: compute capability 8.0"


def test_builds_that_know_no_gpu_are_told_apart_from_machines_that_have_none() -> None:
    reasons = on_gpu(replace(ENVIRONMENT, machine=replace(ENVIRONMENT.machine, gpus=(GPU,))))
    assert "built without CUDA" in reasons["torch f32, f16, attention sdpa, device cuda"]
    assert "no provider tensorrt: pip install onnxruntime-gpu" in reasons["onnxruntime f16, provider tensorrt"]


def test_a_slow_torch_on_the_processor_says_nothing_of_the_one_on_the_gpu() -> None:
    plain = Candidate("denoiser", "torch", options={"attention": "sdpa"})
    fast = Candidate("denoiser", "torch", "f32", "f16", {"device": "cuda", "attention": "sdpa"})
    trials = [make_trial("", 9.0, candidate=fast), make_trial("", 0.4, candidate=plain)]
    assert dominated_reason(Candidate("denoiser", "torch", options={"attention": "vanilla"}), trials)
    assert not dominated_reason(replace(fast, options={**fast.options, "attention": "vanilla"}), trials)


def test_the_gpu_that_is_asked_for_is_the_one_that_is_tried_and_none_beside_the_processor() -> None:
    backends = {
        **ENVIRONMENT.backends,
        "torch": replace(status("torch", "f32"), devices=("cpu", "cuda:0", "cuda:1")),
        "onnxruntime": replace(status("onnxruntime", "f32"), devices=("CUDA", "CPU")),
    }
    environment = replace(ENVIRONMENT, backends=backends, machine=replace(ENVIRONMENT.machine, gpus=(GPU, GPU)))
    devices = {
        candidate.options.get("device") for candidate in runnable("denoiser", replace(environment, device="cuda:1"))
    }
    assert devices == {None, "cuda:1"}
    second = on_gpu(replace(environment, device="cuda:1"))
    assert second["onnxruntime f32, provider cuda"] == "onnxruntime candidates use the first GPU only"
    reasons = on_gpu(replace(environment, device="cpu"))
    assert {reason for name, reason in reasons.items() if "tensorrt" not in name} == {"the device cpu was requested"}
    assert all(reasons.values())


@pytest.mark.parametrize(("sqnr", "is_spoilt"), [(13.9, True), (14.1, False), (25.0, False)])
def test_a_graph_far_below_the_bound_is_not_measured_with_other_options(sqnr: float, is_spoilt: bool) -> None:
    streams = Candidate("network", "openvino", "int8-static", options={"streams": "2"})
    static = replace(streams, options={"shapes": "static"})
    trial = replace(make_trial("x", candidate=static, sqnr=sqnr), status="rejected")
    assert bool(spoilt_graph_reason(streams, [trial], 20.0)) == is_spoilt
    assert not spoilt_graph_reason(streams, [replace(trial, status="accepted")], 20.0)
    assert not spoilt_graph_reason(streams, [trial], None)
    assert not spoilt_graph_reason(replace(streams, recipe="int8-weights"), [trial], 20.0)
    assert not spoilt_graph_reason(replace(streams, recipe="f32"), [trial], 20.0)


@pytest.mark.parametrize(("seconds", "place"), [(0.5, 0), (4.0, 4)])
def test_plain_onnxruntime_waits_for_likelier_candidates_where_calls_are_long(seconds: float, place: int) -> None:
    plain = Candidate("denoiser", "onnxruntime")
    others = [Candidate("denoiser", "openvino", options={"streams": str(count)}) for count in range(6)]
    baseline = make_trial("onnxruntime", seconds=Timing(seconds, seconds, seconds, 3))
    assert order_candidates([plain, *others], [baseline]).index(plain) == place
    cut = Trial(others[1], "skipped", BUDGET_CUT)
    assert order_candidates([plain, *others], [baseline, cut])[-1] == others[1]
