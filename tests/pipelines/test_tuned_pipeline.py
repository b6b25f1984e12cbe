"""A pipeline run as its manifest tunes it: step caching, tiles, threads, static shapes, and overrides of all that."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.backends.deepcache_split import split_denoiser
from stillhouse.backends.registry import open_runner
from stillhouse.backends.runner import RunnerOptions
from stillhouse.core import ImageRequest
from stillhouse.errors import InvalidRequest
from stillhouse.pipelines.batch_sizes import DEFAULT_SIZES
from stillhouse.pipelines.manifest import Component, StepCache, read_manifest, write_manifest
from stillhouse.pipelines.pipeline import Pipeline
from stillhouse.pipelines.runners import MAX_OPEN, override_manifest
from stillhouse.pipelines.tiled_decode import decode_tiled
from tests.conftest import NEGATIVE, PROMPT, SIZE, Checkpoint
from tests.pipelines.test_pipeline import finished

CUT = StepCache("unet/model.full-0.onnx", "unet/model.shallow-0.onnx")
REQUESTS = (
    ImageRequest(PROMPT, steps=4, guidance=3.0, cache_interval=2),
    ImageRequest(NEGATIVE, steps=5, guidance=1.0, sampler="euler_ancestral", seed=4, cache_interval=3),
    ImageRequest(PROMPT, steps=3, guidance=3.0, sampler="heun", guidance_interval=(0.3, 1.0), cache_interval=4, seed=2),
    ImageRequest(PROMPT, steps=4, guidance=3.0),
)

Seen = list[tuple[str, str, RunnerOptions]]


@pytest.fixture(scope="module")
def cut(imported: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A pipeline directory by kind, whose U-Net is cut."""
    root = tmp_path_factory.mktemp("cut")

    def find(kind: str) -> Path:
        if not (root / kind).exists():
            shutil.copytree(imported(kind), root / kind)
            split_denoiser(root / kind / "unet/model.onnx")
            write_manifest(root / kind, replace(read_manifest(root / kind), step_cache=CUT))
        return root / kind

    return find


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The graph, the backend and the options of each network at its opening."""
    openings: Seen = []

    def open_seen(graph: Path, backend: str, options: RunnerOptions) -> Any:
        openings.append((graph.name, backend, options))
        return open_runner(graph, backend, replace(options, settings={}))

    monkeypatch.setattr("stillhouse.pipelines.runners.open_runner", open_seen)
    return openings


def tuned(directory: Path, **changes: Any) -> Pipeline:
    """Opened with a changed U-Net."""
    unet = read_manifest(directory).components["denoiser"]
    return Pipeline(directory, components={"denoiser": replace(unet, **changes)})


@pytest.mark.parametrize(
    ("kind", "backend", "streams"), [("sd1", "onnxruntime", 1), ("xl", "openvino", 1), ("xl", "openvino", 2)]
)
def test_a_picture_that_keeps_features_does_not_depend_on_its_batch(
    kind: str, backend: str, streams: int, cut: Callable[[str], Path]
) -> None:
    pipeline = tuned(cut(kind), backend=backend, streams=streams, threads=1)
    alone = [finished(pipeline, pipeline.start(request))[0] for request in REQUESTS]
    together = finished(pipeline, *map(pipeline.start, REQUESTS))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_kept_features_change_a_picture_a_little(cut: Callable[[str], Path]) -> None:
    pipeline = Pipeline(cut("sd1"), threads=1)
    fields: dict[str, Any] = {"steps": 12, "guidance": 2.0, "sampler": "dpmpp_2m"}
    exact, other = pipeline.generate(PROMPT, **fields), pipeline.generate(PROMPT, seed=1, **fields)
    second, fourth = (pipeline.generate(PROMPT, cache_interval=cache_interval, **fields) for cache_interval in (2, 4))
    errors = [np.abs(exact.image.astype(int) - result.image).mean() for result in (second, fourth, other)]
    assert 0 < errors[0] < errors[1] < errors[2] / 2
    assert (exact.request.cache_interval, second.request.cache_interval) == (1, 2)


def test_without_kept_features_a_cut_network_draws_what_the_whole_one_does(cut: Callable[[str], Path]) -> None:
    """The graphs differ by one output, which lets a runtime fuse other layers."""
    whole, parts = tuned(cut("sd1"), threads=1), Pipeline(cut("sd1"), threads=1)
    whole.manifest = replace(whole.manifest, step_cache=None)
    images = [pipeline.generate(PROMPT, steps=4, guidance=3.0).image.astype(int) for pipeline in (whole, parts)]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_which_networks_are_opened(cut: Callable[[str], Path], imported: Checkpoint, seen: Seen) -> None:
    """A pipeline in one piece pays nothing for step caching; one that is cut never opens the whole."""
    Pipeline(imported("sd1"), threads=1).generate(PROMPT, steps=2)
    assert [graph for graph, _, _ in seen] == ["model.onnx", "model.onnx", "decoder.onnx"]
    seen.clear()
    pipeline = Pipeline(cut("sd1"), threads=1)
    pipeline.generate(PROMPT, steps=2)
    assert [graph for graph, _, _ in seen] == ["model.onnx", "model.full-0.onnx", "decoder.onnx"]
    pipeline.generate(PROMPT, steps=2, cache_interval=2)
    assert [graph for graph, _, _ in seen][3:] == ["model.shallow-0.onnx"]


def test_the_depths_are_run_as_the_network_is(cut: Callable[[str], Path], seen: Seen) -> None:
    pipeline = tuned(cut("sd1"), backend="openvino", streams=2, threads=1, settings={"some": "thing"})
    pipeline.generate(PROMPT, steps=2, guidance=3.0, cache_interval=2)
    depths = [(backend, options) for graph, backend, options in seen if "-0" in graph]
    assert len(depths) == 2
    for backend, options in depths:
        assert (backend, options.streams, options.threads, options.settings) == ("openvino", 2, 1, {"some": "thing"})
        assert {shape[0] for shape in options.shapes.values()} == {1}
    assert depths[1][1].shapes["deep"][2:] == (SIZE // 4, SIZE // 4)


def test_a_static_network_is_opened_for_each_shape_that_it_is_fed(imported: Checkpoint, seen: Seen) -> None:
    pipeline = tuned(imported("sd1"), static=True, threads=1)
    requests = [ImageRequest(PROMPT, steps=2, guidance=3.0, seed=seed) for seed in range(2)]
    finished(pipeline, *map(pipeline.start, requests))
    finished(pipeline, pipeline.start(requests[0]))
    finished(pipeline, *map(pipeline.start, requests))
    opened = [options.shapes for graph, _, options in seen if options.shapes]
    assert [shapes["sample"] for shapes in opened] == [(4, 4, 16, 16), (2, 4, 16, 16)]
    assert opened[0]["encoder_hidden_states"] == (4, 77, 32)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_picture_of_a_static_network_does_not_depend_on_its_batch(backend: str, cut: Callable[[str], Path]) -> None:
    """It is as near to the picture of a network with free shapes as runtimes that know shapes round alike."""
    static, free = (tuned(cut("sd1"), backend=backend, static=static, threads=1) for static in (True, False))
    together = finished(static, *map(static.start, REQUESTS))
    for request, image in zip(REQUESTS, together, strict=True):
        np.testing.assert_array_equal(image, finished(static, static.start(request))[0])
        assert np.abs(image.astype(int) - finished(free, free.start(request))[0]).max() <= 1


@pytest.mark.parametrize(("rows", "opened"), [((), [4]), ((2, 3), [3]), ((2,), [2])])
def test_a_batch_is_brought_to_the_sizes_that_a_static_network_is_opened_for(
    rows: tuple[int, ...], opened: list[int], imported: Checkpoint, seen: Seen
) -> None:
    """Three rows are four where none is lacking, and two times two where no more may be."""
    static, free = tuned(imported("sd1"), static=True, rows=rows, threads=1), tuned(imported("sd1"), threads=1)
    assert static.batch_sizes == (rows or DEFAULT_SIZES) and free.batch_sizes == ()
    requests = [ImageRequest(PROMPT, steps=2, guidance=scale, seed=7) for scale in (3.0, 1.0)]
    together = finished(static, *map(static.start, requests))
    assert [options.shapes["sample"][0] for _, _, options in seen if options.shapes] == opened
    for request, image in zip(requests, together, strict=True):
        assert np.abs(image.astype(int) - finished(free, free.start(request))[0]).max() <= 1


def test_torch_compiles_for_each_shape_over_one_copy_of_the_weights(imported: Checkpoint, seen: Seen) -> None:
    pipeline = tuned(imported("sd1"), backend="torch", static=True, threads=1)
    requests = [
        ImageRequest(PROMPT, steps=2, guidance=3.0, seed=seed, width=width) for seed, width in ((0, 32), (1, 48))
    ]
    images = [finished(pipeline, pipeline.start(request))[0] for request in requests]
    assert [image.shape for image in images] == [(SIZE, 32, 3), (SIZE, 48, 3)]
    (options,) = (options for _, backend, options in seen if backend == "torch")
    assert options.static and not options.shapes


def test_open_networks_are_bounded(imported: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    openings: list[object] = []
    monkeypatch.setattr("stillhouse.pipelines.runners.open_runner", lambda *asked: openings.append(asked))
    pipeline = tuned(imported("sd1"), static=True)
    for rows in [*range(1, MAX_OPEN + 2), MAX_OPEN + 1, 2, 1]:
        pipeline.runner("denoiser", {"sample": (rows, 4, 8, 8)})
    assert len(openings) == MAX_OPEN + 2, "all but the first were still open, and then the first was opened again"


@pytest.mark.parametrize(("asked", "threads"), [(None, 3), (1, 1)])
def test_the_callers_threads_go_before_the_manifests(
    asked: int | None, threads: int, imported: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunnerOptions] = []
    monkeypatch.setattr(
        "stillhouse.pipelines.runners.open_runner", lambda graph, backend, options: seen.append(options)
    )
    unet = replace(read_manifest(imported("sd1")).components["denoiser"], threads=3)
    Pipeline(imported("sd1"), threads=asked, components={"denoiser": unet}).runner("denoiser", {})
    assert seen[0].threads == threads


def test_another_backend_leaves_the_tuning_behind(imported: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, RunnerOptions]] = []
    monkeypatch.setattr("stillhouse.pipelines.runners.open_runner", lambda graph, *rest: seen.append(rest))
    unet = replace(
        read_manifest(imported("sd1")).components["denoiser"],
        backend="openvino", precision="bf16", streams=2, threads=3, static=True, settings={"some": "thing"},
    )  # fmt: skip
    for backend in ("onnxruntime", "openvino"):
        Pipeline(imported("sd1"), backend=backend, components={"denoiser": unet}).runner(
            "denoiser", {"sample": (2, 4, 8, 8)}
        )
    assert seen[0] == ("onnxruntime", RunnerOptions())
    tuned = RunnerOptions("bf16", 3, {"sample": (1, 4, 8, 8)}, True, streams=2, settings={"some": "thing"})
    assert seen[1] == ("openvino", tuned)


def test_precision_is_asked_of_every_depth_of_the_unet(
    cut: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "stillhouse.pipelines.runners.open_runner", lambda graph, backend, options: seen.append(options.precision)
    )
    pipeline = Pipeline(cut("sd1"), precision="bf16")
    for name in ("denoiser", "denoiser_full", "denoiser_shallow", "decoder"):
        pipeline.runner(name, {})
    assert seen == ["bf16", "bf16", "bf16", "f32"]


def test_candidates_are_tried_without_a_manifest_of_their_own(imported: Checkpoint, tmp_path: Path) -> None:
    """Another graph from anywhere, other defaults, and a step cache."""
    directory = imported("sd1")
    elsewhere = Path(shutil.copytree(directory / "unet", tmp_path / "unet"))
    cut = split_denoiser(elsewhere / "model.onnx")
    defaults = replace(
        read_manifest(directory).defaults, steps=3, guidance=3.0, sampler="dpmpp_2m", guidance_interval=(0.0, 0.5)
    )
    unet = Component(str(elsewhere / "model.onnx"), str(elsewhere / "diffusion_pytorch_model.safetensors"))
    moved = Pipeline(directory, threads=1, components={"denoiser": unet}, defaults=defaults)
    result = moved.generate(PROMPT)
    told = (
        result.request.steps,
        result.request.sampler,
        result.request.guidance_interval,
        result.request.cache_interval,
    )
    assert told == (3, "dpmpp_2m", (0.0, 0.5), 1)
    fields: dict[str, Any] = {"steps": 3, "guidance": 3.0, "sampler": "dpmpp_2m", "guidance_interval": (0.0, 0.5)}
    np.testing.assert_array_equal(result.image, Pipeline(directory, threads=1).generate(PROMPT, **fields).image)

    step_cache = StepCache(str(cut.full), str(cut.shallow))
    caching = Pipeline(directory, threads=1, defaults=replace(defaults, cache_interval=2), step_cache=step_cache)
    kept = caching.generate(PROMPT)
    assert kept.request.cache_interval == 2 and not np.array_equal(kept.image, result.image)
    assert read_manifest(directory).step_cache is None


def test_a_step_cache_goes_with_the_network_that_it_was_cut_from(cut: Callable[[str], Path]) -> None:
    manifest = read_manifest(cut("sd1"))
    unet, other = manifest.components["denoiser"], StepCache("a.onnx", "b.onnx")
    assert override_manifest(manifest, {"denoiser": replace(unet, backend="openvino")}).step_cache == CUT
    assert override_manifest(manifest, {"decoder": replace(unet, graph="vae.onnx")}).step_cache == CUT
    assert override_manifest(manifest, {"denoiser": replace(unet, graph="int8.onnx")}).step_cache is None
    cached = replace(manifest, defaults=replace(manifest.defaults, cache_interval=2))
    assert override_manifest(cached, {}).defaults.cache_interval == 2
    assert override_manifest(cached, {"denoiser": replace(unet, graph="int8.onnx")}).defaults.cache_interval == 1
    assert override_manifest(manifest, {"denoiser": replace(unet, graph="int8.onnx")}, None, other).step_cache == other


def test_a_component_that_does_not_exist(imported: Checkpoint) -> None:
    with pytest.raises(InvalidRequest, match="there is no component 'denoisr'; allowed: .*did you mean 'denoiser'"):
        Pipeline(imported("sd1"), components={"denoisr": Component("a", "b")})


def test_only_pictures_larger_than_a_tile_are_decoded_in_tiles(
    imported: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, fed = imported("sd1"), list[tuple[int, ...]]()
    defaults = read_manifest(directory).defaults
    whole, tiled = Pipeline(directory, threads=1), Pipeline(directory, threads=1, defaults=replace(defaults, tile=SIZE))
    small, large = (_latents(whole, size, 2 * size) for size in (8, 16))
    run = tiled.run

    def run_seen(component: str, feeds: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        fed.append(feeds["latent_sample"].shape)
        return run(component, feeds)

    monkeypatch.setattr(tiled, "run", run_seen)
    np.testing.assert_array_equal(tiled.decode(small), whole.decode(small))
    assert fed == [(1, 4, 8, 16)]
    fed.clear()
    picture = tiled.decode(large)
    assert fed == [(1, 4, 16, 16)] * 3
    assert picture.shape == (SIZE, 2 * SIZE, 3)
    assert not np.array_equal(picture, whole.decode(large)), "a tile's norms know that tile only"


def test_tiles_of_a_picture_are_those_of_its_scaled_latents(imported: Checkpoint) -> None:
    directory = imported("sd1")
    defaults = replace(read_manifest(directory).defaults, tile=50)
    pipeline = Pipeline(directory, threads=1, defaults=defaults)
    latents, latent = _latents(pipeline, 16, 24), pipeline.manifest.latent

    def decode(part: NDArray[Any]) -> NDArray[Any]:
        signal: NDArray[Any] = pipeline.run("decoder", {"latent_sample": part[None]})["sample"][0]
        return signal

    signal = decode_tiled(decode, latents / latent.scaling_factor + latent.shift_factor, 12, 4)
    np.testing.assert_allclose(
        pipeline.decode(latents), (signal.transpose(1, 2, 0) / 2 + 0.5).clip(0, 1) * 255, atol=0.51
    )


def _latents(pipeline: Pipeline, height: int, width: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:height, :width] / 6
    waves = np.stack([np.sin(y + x), np.cos(y), np.sin(x), np.cos(x - y)])
    return (waves * pipeline.manifest.latent.scaling_factor * 4).astype(np.float32)
