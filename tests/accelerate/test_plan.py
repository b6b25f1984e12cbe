"""The plan says of everything that it considers either that it is tried, or why not."""

from dataclasses import replace

import pytest

from stillhouse.accelerate.candidate import Candidate
from stillhouse.accelerate.plan import BASELINE, Surroundings, plan, recipes
from stillhouse.accelerate.trial import Trial
from stillhouse.backends.runtime import BackendStatus
from tests.accelerate.trials import MACHINE


def status(name: str, *precisions: str, reason: str | None = None) -> BackendStatus:
    return BackendStatus(name, "1.0", ("CPU",), precisions, reason, f"pip install {name}")


AROUND = Surroundings(
    backends={
        "onnxruntime": status("onnxruntime", "f32"),
        "openvino": status("openvino", "f32", "bf16", "auto"),
        "torch": status("torch", "f32", "bf16"),
    },
    machine=replace(MACHINE, instructions=("avx2", "avx512_bf16")),
    has_modules=True,
    dynamic_rows=True,
    threads=2,
)


def tried(component: str, around: Surroundings) -> list[Candidate]:
    return list(recipes(plan(component, around)))


def excluded(component: str, around: Surroundings) -> dict[str, str]:
    return {one.candidate.name: one.reason for one in plan(component, around) if isinstance(one, Trial)}


@pytest.mark.parametrize("component", ["unet", "vae_decoder", "text_encoder", "network"])
def test_the_baseline_comes_first_and_nothing_comes_twice(component: str) -> None:
    planned = plan(component, AROUND)
    assert planned[0] == Candidate(component, BASELINE)
    names = [(one.candidate if isinstance(one, Trial) else one).key for one in planned]
    assert len(names) == len(set(names))


def test_every_backend_and_precision_of_the_list_is_considered_for_the_unet() -> None:
    found = {(one.backend, one.recipe, one.precision) for one in tried("unet", AROUND)}
    for recipe in ("f32", "f16", "int8-static"):
        assert ("onnxruntime", recipe, "f32") in found
    for recipe in ("int8-dynamic", "uint8-dynamic"):
        assert "who is drawn beside it" in excluded("unet", AROUND)[f"onnxruntime {recipe}"]
        assert recipe in {one.recipe for one in tried("network", AROUND)}
    for recipe in ("f32", "int8-static", "int8-weights", "int4-weights"):
        assert ("openvino", recipe, "f32") in found
    assert {("openvino", "f32", "bf16"), ("torch", "f32", "f32"), ("torch", "f32", "bf16")} <= found
    attention = {one.options.get("attention") for one in tried("unet", AROUND) if one.backend == "torch"}
    assert attention == {"vanilla", "sdpa", "sliced"}


def test_what_the_processor_lacks_is_excluded_with_its_reason() -> None:
    openvino = {**AROUND.backends, "openvino": status("openvino", "f32", "auto")}
    lacking = replace(AROUND, backends=openvino, machine=MACHINE)
    reasons = excluded("unet", lacking)
    assert {name.partition(" ")[0] for name, reason in reasons.items() if "no bf16" in reason} == {"openvino", "torch"}
    assert all(one.precision != "bf16" for one in tried("unet", lacking))


def test_what_is_not_installed_is_excluded_with_the_line_that_installs_it() -> None:
    missing = replace(AROUND, backends={**AROUND.backends, "torch": status("torch", reason="not installed")})
    reasons = excluded("unet", missing)
    assert all("pip install torch" in reason for name, reason in reasons.items() if name.startswith("torch"))
    assert all(one.backend != "torch" for one in tried("unet", missing))


def test_torch_needs_the_modules_and_streams_need_rows() -> None:
    bare = replace(AROUND, has_modules=False, dynamic_rows=False)
    reasons = excluded("network", bare)
    assert "an ONNX file" in reasons["torch f32, attention sdpa"]
    assert "no rows" in reasons["openvino f32, streams 2"]


def test_an_engine_of_another_package_is_tried_too() -> None:
    added = replace(AROUND, backends={**AROUND.backends, "theirs": status("theirs", "f32")})
    assert Candidate("unet", "theirs") in tried("unet", added)


def test_a_decoder_is_tried_in_tiles_of_half_its_side_unless_they_were_too_small() -> None:
    (tiled,) = [one for one in tried("vae_decoder", replace(AROUND, side=512)) if "tile" in one.options]
    assert tiled.options["tile"] == "256"
    assert "smallest tile" in excluded("vae_decoder", replace(AROUND, side=48))["openvino f32, tile 24"]


def test_there_is_nothing_to_offload_to_on_a_processor() -> None:
    assert "the very memory" in excluded("unet", AROUND)["torch f32, attention sdpa, offload cpu"]
