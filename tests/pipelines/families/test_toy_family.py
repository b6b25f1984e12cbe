"""A family of another kind runs through `Pipeline` and the engine, without a line for it outside of its own file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillhouse.core import ImageRequest
from stillhouse.diffusion import TimestepGrid
from stillhouse.errors import InvalidRequest, ManifestError
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.families.base import denormalize_latents, normalize_latents
from stillhouse.pipelines.manifest import Latent, read_manifest, write_manifest
from stillhouse.pipelines.pipeline import ImageTrajectory, Pipeline
from stillhouse.pipelines.resolve import resolve
from stillhouse.pipelines.roles import CONTROLNET, DENOISER, TEXT_ENCODERS
from stillhouse.pipelines.tokenizers import PromptTruncated
from stillhouse.serve.engine.cost import CostModel, LatencyCurve
from stillhouse.serve.engine.engine import Engine
from stillhouse.serve.engine.executor import PipelineExecutor, trajectory_of
from stillhouse.serve.engine.job import BatchKey, Job, Tier, make_batch_key, plan_steps
from stillhouse.serve.engine.policy import POLICIES
from stillhouse.serve.engine.simulate import VirtualExecutor
from tests.pipelines.families.networks import CHANNELS, DOWNSCALE, MAX_TOKENS, write_toy
from tests.pipelines.families.toy_family import PATCH, TOY, pack_latents, unpack_tokens

SHORT, LONG = "a red circle", "a big blue circle left of a small red square left of a blue circle"
REQUESTS = (
    ImageRequest(SHORT, seed=1),
    ImageRequest("blue square", "red", seed=2, guidance=1.0),
    ImageRequest(SHORT, seed=3, guidance=5.0, steps=6, sampler="dpmpp_2m", guidance_interval=(0.2, 0.8)),
    ImageRequest("a blue circle", "circle", seed=4, guidance_rescale=0.7),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pipeline(directory: Path) -> Pipeline:
    return Pipeline(directory, threads=1)


def finish(pipeline: Pipeline, *requests: ImageRequest) -> list[ImageTrajectory]:
    """Generate pictures in one batch."""
    trajectories = [pipeline.start(request) for request in requests]
    for _ in pipeline.steps(trajectories):
        pass
    return trajectories


def test_it_generates(pipeline: Pipeline) -> None:
    result = pipeline.generate(SHORT, seed=7)
    assert result.image.shape == (24, 32, 3) and result.image.std() > 5
    assert (result.request.steps, result.request.sampler) == (4, "flow_euler")
    for change in ({"seed": 8}, {"negative_prompt": "square"}, {"guidance": 1.0}, {"prompt": "a blue circle"}):
        fields: dict[str, Any] = {"prompt": SHORT, "seed": 7, **change}
        assert not np.array_equal(pipeline.generate(**fields).image, result.image), change
    assert pipeline.generate(SHORT, width=64, height=48).image.shape == (48, 64, 3)


def test_its_components_have_the_roles_of_every_pipeline(directory: Path) -> None:
    manifest = read_manifest(directory, verify=True)
    assert manifest.components[DENOISER].graph == "transformer/model.onnx"
    assert find_family("toy") is TOY
    with pytest.raises(
        ManifestError,
        match="of the family 'unheard-of', which is not installed; allowed: .*stable-diffusion-xl, toy",
    ):
        find_family("unheard-of")


def test_options_of_another_family_are_refused(directory: Path, tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    manifest = read_manifest(tmp_path / "toy")
    write_manifest(tmp_path / "toy", replace(manifest, family_options={"in_channels": 4}))
    with pytest.raises(ManifestError, match="family_options"):
        read_manifest(tmp_path / "toy")


def test_a_step_by_hand(pipeline: Pipeline) -> None:
    """One step of three branches from pure noise: the velocity of each, guided, and Euler's step to the clean latents.

    At the first level of a flow z is noise, time 1000, and the step to time 0 is x0 = z - velocity.
    """
    trajectory = pipeline.start(ImageRequest(SHORT, "blue", steps=1))
    assert trajectory.rows == 3 and trajectory.plan.grid.levels[0].timestep == 1000
    z, outputs = trajectory.latents, {}
    for name, text in (("unconditional", ""), ("negative", "blue"), ("conditional", SHORT)):
        tokens = pipeline.tokenizers[TEXT_ENCODERS[0]].encode(text, 16)
        states = pipeline.run(TEXT_ENCODERS[0], {"input_ids": tokens.ids[None], "attention_mask": tokens.mask[None]})[
            "states"
        ]
        feeds = {
            "hidden_states": pack_latents(z[None]),
            "timestep": np.ones(1, np.float32),
            "encoder_hidden_states": states,
            "encoder_attention_mask": tokens.mask[None].astype(np.float32),
        }
        outputs[name] = -unpack_tokens(pipeline.run(DENOISER, feeds)["velocity"], (1, *z.shape))[0]
    base = outputs["unconditional"]
    guided = base - 0.5 * (outputs["negative"] - base) + 3.0 * (outputs["conditional"] - base)
    pipeline.advance([trajectory])
    np.testing.assert_allclose(trajectory.latents, z - guided, atol=1e-5)


def test_a_picture_in_a_batch_is_the_picture_alone(pipeline: Pipeline) -> None:
    """Bit for bit, with one row and with three rows, other samplers and other numbers of steps."""
    assert {pipeline.resolve(request).batch_key for request in REQUESTS} == {(32, 24, 16)}
    alone = [finish(pipeline, request)[0].latents.tobytes() for request in REQUESTS]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
        together = finish(pipeline, *(REQUESTS[place] for place in order))
        assert [trajectory.latents.tobytes() for trajectory in together] == [alone[place] for place in order]
        assert [trajectory.rows for trajectory in map(pipeline.start, REQUESTS)] == [3, 1, 1, 3]


@given(st.text(max_size=60), st.text(max_size=60))
@settings(deadline=None)
def test_the_batch_key_holds_a_length_that_both_texts_fit(pipeline: Pipeline, prompt: str, negative: str) -> None:
    """It follows from the request's texts alone, and every branch is padded to it."""
    request = ImageRequest(prompt, negative)
    width, height, length = resolve(pipeline.manifest, request).batch_key
    longest = max(len(text.encode()) for text in (prompt, negative))
    assert (width, height) == (32, 24) and length % 8 == 0 and length == min(-(-(1 + longest) // 8) * 8, MAX_TOKENS)
    for branch in pipeline.start(request).branches.values():
        assert {array.shape[0] for array in branch.inputs.values()} == {length}
        assert branch.inputs["encoder_attention_mask"].dtype == np.float32


def test_texts_of_other_lengths_have_other_batch_keys_and_share_no_batch(pipeline: Pipeline) -> None:
    short, long = (pipeline.resolve(ImageRequest(text)) for text in (SHORT, LONG))
    assert (short.batch_key, long.batch_key) == ((32, 24, 16), (32, 24, MAX_TOKENS))
    assert make_batch_key("toy", short) != make_batch_key("toy", long)
    trajectories = [pipeline.start(short), pipeline.start(long)]
    message = (
        r"input encoder_hidden_states has the shapes \[16, 8\], \[32, 8\]; allowed: inputs of one shape in a batch; "
        "batch pictures by `Resolved.batch_key`"
    )
    with pytest.raises(InvalidRequest, match=message):
        pipeline.advance(trajectories)
    assert [trajectory.index for trajectory in trajectories] == [0, 0]


def test_a_long_text_is_cut_with_a_warning(pipeline: Pipeline) -> None:
    with pytest.warns(
        PromptTruncated, match="40 tokens, the model reads 31; .*: 'red red red red red red red red red'"
    ):
        pipeline.start(ImageRequest("red " * 39 + "red"))


@dataclass(frozen=True)
class RecordingExecutor(PipelineExecutor):
    """Notes the padded lengths of the texts in each batch."""

    lengths: list[set[int]] = field(default_factory=list)

    def advance(self, jobs: Sequence[Job]) -> None:
        trajectories: list[Any] = [job.trajectory for job in jobs]
        branches = [branch for trajectory in trajectories for branch in trajectory.branches.values()]
        self.lengths.append({len(branch.inputs["encoder_hidden_states"]) for branch in branches})
        super().advance(jobs)


def test_a_neighbour_with_a_longer_text_cannot_change_a_picture(pipeline: Pipeline) -> None:
    """An engine that would rather batch everything keeps them apart, and each picture is the one alone."""
    requests = [*REQUESTS, ImageRequest(LONG, seed=5), ImageRequest(SHORT, LONG, seed=6), ImageRequest("red", seed=7)]
    cost = CostModel({BatchKey("toy", 32, 24): LatencyCurve({1: 1.0, 8: 1.0})})
    executor = RecordingExecutor({"toy": pipeline})
    engine = Engine(executor, POLICIES["slack"], cost, VirtualExecutor(cost).clock)
    for number, request in enumerate(requests):
        resolved = pipeline.resolve(request)
        steps = plan_steps(pipeline.manifest, resolved)
        engine.submit(Job(str(number), Tier("free"), "key", make_batch_key("toy", resolved), steps, resolved))
    pictures: dict[str, Any] = {}
    while engine.jobs:
        pictures |= {job.id: pipeline.finish(trajectory_of(job)).image for job in engine.step().finished}
    assert len(pictures) == len(requests)
    for number, request in enumerate(requests):
        alone = pipeline.finish(finish(pipeline, request)[0]).image
        np.testing.assert_array_equal(pictures[str(number)], alone)
    assert all(len(lengths) == 1 for lengths in executor.lengths)
    assert {length for lengths in executor.lengths for length in lengths} == {8, 16, MAX_TOKENS}


def test_its_schedule_follows_the_pictures_size(pipeline: Pipeline) -> None:
    def grid(width: int) -> TimestepGrid:
        return pipeline.resolve(ImageRequest("", width=width)).plan.grid

    tokens = 32 * 24 / (DOWNSCALE * PATCH) ** 2
    assert grid(32).levels[1].sigma == pytest.approx((1 + tokens / 64) * 0.75 / (1 + tokens / 64 * 0.75))
    assert grid(64).levels[1].sigma > grid(32).levels[1].sigma


def test_images_are_refused_where_the_request_is_admitted(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="an image for toy; allowed: prompts; leave the image out"):
        pipeline.resolve(ImageRequest(SHORT, image=np.zeros((24, 32, 3), np.uint8)))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_earlier_networks_output_is_an_input_of_the_denoiser(tmp_path: Path, guidance: float) -> None:
    """A control network before the transformer is the transformer with that network inside; nothing else knows."""
    control, inside = (Pipeline(write_toy(tmp_path / kind, kind), threads=1) for kind in ("input", "inside"))
    ran: list[str] = []
    run = control.run

    def noted(role: str, feeds: Any) -> Any:
        ran.append(role)
        return run(role, feeds)

    control.run = noted  # type: ignore[method-assign, assignment]
    request = ImageRequest(SHORT, "blue", guidance=guidance, steps=3)
    ours, theirs = (finish(each, request)[0].latents for each in (control, inside))
    assert ours.tobytes() == theirs.tobytes()
    assert ran[-6:] == [CONTROLNET, DENOISER] * 3
    plain = finish(Pipeline(write_toy(tmp_path / "plain"), threads=1), request)[0].latents
    assert not np.array_equal(ours, plain)
    alone = finish(control, REQUESTS[0])[0].latents
    assert finish(control, request, REQUESTS[0])[1].latents.tobytes() == alone.tobytes()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_packed_latents_are_unpacked(rows: int, height: int, width: int) -> None:
    shape = (rows, CHANNELS, height * PATCH, width * PATCH)
    latents = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    tokens = pack_latents(latents)
    assert tokens.shape == (rows, height * width, CHANNELS * PATCH * PATCH)
    np.testing.assert_array_equal(tokens[0, 0].reshape(CHANNELS, PATCH, PATCH), latents[0, :, :PATCH, :PATCH])
    np.testing.assert_array_equal(unpack_tokens(tokens, shape), latents)


def test_latents_are_normalised_by_channel_where_the_manifest_says_so() -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    latent = Latent(2, 1.0, 0.0, 8, mean=(1.0, -1.0), std=(2.0, 0.5))
    normal = normalize_latents(latent, latents)
    np.testing.assert_allclose(normal[1], (latents[1] + 1) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(denormalize_latents(latent, normal), latents, atol=1e-6)
