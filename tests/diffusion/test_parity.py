"""Step by step against diffusers' schedulers: where they agree to 1e-5, and, as facts, where they do not.

Both sides walk on their own and ask the same made-up network, in float64. diffusers holds its levels in float32, whose
error an epsilon network multiplies by sigma / alpha; so the levels are compared first, and then lent to diffusers.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from numpy.typing import NDArray

from stillhouse.diffusion import (
    SAMPLERS,
    InpaintBlend,
    Prediction,
    SamplerState,
    Schedule,
    SigmaSpacing,
    Spacing,
    TimestepGrid,
    grid_from_timesteps,
    make_grid,
    noise_levels,
    predict_denoised,
)
from stillhouse.diffusion.guidance import rescale_factor
from stillhouse.errors import InvalidRequest
from tests.diffusion.formulas import alphas_cumprod, sampler_step

# diffusers reads torch tensors with np.array(...), whose new keyword torch 2.13 does not know.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

Real = NDArray[np.float64]
Network = Callable[[Any, float], Any]

STABLE_DIFFUSION = Schedule("scaled_linear", 0.00085, 0.012)
DDPM = Schedule("linear", 0.0001, 0.02)
COSINE = Schedule("squaredcos_cap_v2")
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction")
SHAPE = (1, 2, 4, 4)


def draws(count: int) -> list[Real]:
    return list(np.random.default_rng(11).standard_normal((count, *SHAPE)))


def network(z: Any, timestep: float) -> Any:
    """A made-up network, bounded and without steep places, the same for arrays and tensors."""
    return z / (1 + abs(z)) + 0.1 * np.cos(timestep / 300)


def blind(z: Any, timestep: float) -> Any:
    """One that does not look at the timestep."""
    return network(z, 0.0)


def config(schedule: Schedule, **more: object) -> dict[str, object]:
    return {
        "beta_schedule": schedule.kind,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "num_train_timesteps": schedule.train_steps,
        **more,
    }


def our_walk(
    sampler: str, walk: TimestepGrid, prediction: Prediction, net: Network, noises: list[Real], eta: float = 0.0
) -> Iterator[Real]:
    """z after every evaluation."""
    z, past = noises[0], cast(SamplerState[Real] | None, None)
    for number, evaluation in enumerate(SAMPLERS[sampler].plan(walk, eta)):
        level = evaluation.level
        clean = predict_denoised(prediction, net(z, level.timestep), z, level.alpha, level.sigma)
        fresh = noises[number + 1] if evaluation.coefficients.noise else None
        z, past = sampler_step(SAMPLERS[sampler], z, clean, evaluation, past, fresh)
        yield z


def their_walk(
    scheduler: Any,
    net: Network,
    noises: list[Real],
    monkeypatch: pytest.MonkeyPatch | None = None,
    hand_over: bool = False,
    **more: Any,
) -> Iterator[Real]:
    """z after every step; k-diffusion's schedulers hold z / alpha, which is brought back."""
    if monkeypatch:
        supply = iter(noises[1:])
        fresh = lambda *_, **__: torch.from_numpy(next(supply))  # noqa: E731
        monkeypatch.setattr(f"{type(scheduler).__module__}.randn_tensor", fresh)
    scaled = isinstance(scheduler, EulerDiscreteScheduler | EulerAncestralDiscreteScheduler | HeunDiscreteScheduler)
    sigmas = scheduler.sigmas.double() if scaled else torch.zeros(len(scheduler.timesteps) + 1)
    z = torch.from_numpy(noises[0]) * (sigmas[0] ** 2 + 1) ** 0.5
    for number, timestep in enumerate(scheduler.timesteps):
        seen = z / (sigmas[number] ** 2 + 1) ** 0.5
        if scaled:
            scheduler.scale_model_input(z, timestep)
        output = net(seen, float(timestep))
        if hand_over:
            more["variance_noise"] = torch.from_numpy(noises[number + 1])
        z = scheduler.step(output, timestep, z, return_dict=False, **more)[0]
        yield (z / (sigmas[number + 1] ** 2 + 1) ** 0.5).numpy()


def lend_levels(scheduler: Any, schedule: Schedule, walk: TimestepGrid) -> None:
    """Compare the levels that both sides chose; then give the scheduler ours, which have more digits."""
    ours = alphas_cumprod(schedule)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), ours, rtol=5e-5)
    scheduler.alphas_cumprod = torch.from_numpy(ours)
    if hasattr(scheduler, "sigmas"):
        ratios = walk.sigmas / walk.alphas
        if isinstance(scheduler, HeunDiscreteScheduler):
            ratios = np.concatenate([ratios[:1], ratios[1:-1].repeat(2), ratios[-1:]])
        np.testing.assert_allclose(scheduler.sigmas.numpy(), ratios, rtol=1e-4)  # float32 loses digits of 1 - alpha^2
        scheduler.sigmas = torch.from_numpy(ratios)


def assert_same(ours: Iterator[Real], theirs: Iterator[Real], tolerance: float = 1e-5) -> None:
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        error = np.abs(left - right).max() / np.abs(left).max()
        assert error <= tolerance, f"evaluation {number}: {error:.1e}"


@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, DDPM, COSINE], ids=lambda s: s.kind)
@pytest.mark.parametrize("zero", [False, True])
def test_schedules(schedule: Schedule, zero: bool) -> None:
    theirs = DDIMScheduler(**config(schedule, rescale_betas_zero_snr=zero)).alphas_cumprod.double().numpy()
    ours = alphas_cumprod(Schedule(schedule.kind, schedule.beta_start, schedule.beta_end, zero_terminal_snr=zero))
    # float32 betas near 1 and the subtraction of the rescale leave diffusers 1e-7 of absolute error in alpha.
    np.testing.assert_allclose(np.sqrt(ours), np.sqrt(theirs), rtol=1e-5, atol=1e-6 if zero else 0)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 35, 50, 999])
@pytest.mark.parametrize("trimmed", [False, True])
def test_timesteps(spacing: Spacing, steps: int, trimmed: bool) -> None:
    offset = 1 if steps < 999 else 0
    kind = DPMSolverMultistepScheduler if trimmed else DDIMScheduler
    scheduler = kind(**config(STABLE_DIFFUSION, timestep_spacing=spacing, steps_offset=offset))
    scheduler.set_timesteps(steps)
    ours = make_grid(STABLE_DIFFUSION, steps, spacing, steps_offset=offset, drop_last_level=trimmed)
    assert ours.timesteps.tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("steps", "spacing"),
    [*((steps, "trailing") for steps in (50, 25, 8, 5, 4)), *((steps, "leading") for steps in (50, 35, 9))],
)
def test_ddim(prediction: Prediction, eta: float, steps: int, spacing: Spacing) -> None:
    scheduler = DDIMScheduler(
        **config(STABLE_DIFFUSION, clip_sample=False, prediction_type=prediction, timestep_spacing=spacing),
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    noises = draws(steps + 1)
    walk = make_grid(STABLE_DIFFUSION, steps, spacing, steps_offset=1)
    lend_levels(scheduler, STABLE_DIFFUSION, walk)
    ours = our_walk("ddim", walk, prediction, network, noises, eta)
    assert_same(ours, their_walk(scheduler, network, noises, hand_over=eta > 0, eta=eta))


@pytest.mark.parametrize("steps", [50, 25, 4])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_ddim_from_pure_noise(steps: int, prediction: Prediction) -> None:
    scheduler = DDIMScheduler(
        **config(STABLE_DIFFUSION, clip_sample=False, prediction_type=prediction, timestep_spacing="trailing"),
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(steps)
    walk = make_grid(Schedule(zero_terminal_snr=True), steps)
    ours = our_walk("ddim", walk, prediction, network, draws(1))
    assert_same(ours, their_walk(scheduler, network, draws(1)))


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        *((70, 20), (36, 27), (35, 19), (24, 15), (18, 9), (15, 9), (9, 1), (7, 5), (3, 1)),
        *((50, 0), (25, 0), (8, 0), (5, 0), (4, 0), (2, 0), (1, 0)),
    ],
)
def test_diffusers_ddim_leaves_its_own_trailing_grid_and_ours_does_not(steps: int, wrong: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    listed = scheduler.timesteps.numpy()
    landed = listed - 1000 // steps
    assert np.count_nonzero(landed[:-1] != listed[1:]) == wrong
    ours = SAMPLERS["ddim"].plan(make_grid(STABLE_DIFFUSION, steps))
    assert [evaluation.end.timestep for evaluation in ours[:-1]] == listed[1:].tolist()
    assert (ours[-1].end.alpha, ours[-1].end.sigma) == (1, 0)


def test_diffusers_ddim_can_end_at_its_noisiest_clean_index() -> None:
    """At 35 steps its last jump lands on index 0, where 3 % of noise is left; ours ends clean."""
    scheduler = DDIMScheduler(**config(STABLE_DIFFUSION, timestep_spacing="trailing"))
    scheduler.set_timesteps(35)
    assert scheduler.timesteps[-1] - 1000 // 35 == 0
    assert noise_levels(STABLE_DIFFUSION)[1][0] == pytest.approx(0.029, abs=5e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [35, 7])
def test_ddpm(prediction: Prediction, spacing: Spacing, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = DDPMScheduler(
        **config(DDPM, clip_sample=False, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)
    )
    scheduler.set_timesteps(steps)
    noises = draws(steps + 1)
    walk = make_grid(DDPM, steps, spacing, steps_offset=1)
    lend_levels(scheduler, DDPM, walk)
    ours = our_walk("ddpm", walk, prediction, network, noises)
    assert_same(ours, their_walk(scheduler, network, noises, monkeypatch))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, DDPM], ids=lambda s: s.kind)
@pytest.mark.parametrize(
    ("steps", "spacing"), [(35, "trailing"), (6, "trailing"), (35, "leading"), (28, "linspace"), (10, "linspace")]
)
def test_euler_and_heun(prediction: Prediction, sampler: str, schedule: Schedule, steps: int, spacing: Spacing) -> None:
    kind = EulerDiscreteScheduler if sampler == "euler" else HeunDiscreteScheduler
    scheduler = kind(**config(schedule, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1))
    scheduler.set_timesteps(steps)
    walk = make_grid(schedule, steps, spacing, steps_offset=1)
    lend_levels(scheduler, schedule, walk)
    ours = our_walk(sampler, walk, prediction, network, draws(1))
    assert_same(ours, their_walk(scheduler, network, draws(1)))


def test_diffusers_euler_lays_linspace_out_in_fractions() -> None:
    """Ours are whole timesteps, as its DDIM has them: the same levels where 999 divides, within 0.5 elsewhere."""
    scheduler = EulerDiscreteScheduler(**config(STABLE_DIFFUSION))
    scheduler.set_timesteps(35)
    difference = np.abs(scheduler.timesteps.numpy() - make_grid(STABLE_DIFFUSION, 35, "linspace").timesteps)
    assert 0.4 < difference.max() <= 0.5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("steps", "spacing"), [(35, "trailing"), (6, "leading"), (10, "linspace")])
def test_euler_ancestral(prediction: Prediction, steps: int, spacing: Spacing, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = EulerAncestralDiscreteScheduler(
        **config(STABLE_DIFFUSION, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)
    )
    scheduler.set_timesteps(steps)
    noises = draws(steps + 1)
    walk = make_grid(STABLE_DIFFUSION, steps, spacing, steps_offset=1)
    lend_levels(scheduler, STABLE_DIFFUSION, walk)
    ours = our_walk("euler_ancestral", walk, prediction, network, noises)
    assert_same(ours, their_walk(scheduler, network, noises, monkeypatch))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [35, 10, 3, 2, 1])
@pytest.mark.parametrize("schedule", [STABLE_DIFFUSION, COSINE], ids=lambda s: s.kind)
def test_multistep(prediction: Prediction, sampler: str, spacing: Spacing, steps: int, schedule: Schedule) -> None:
    settings = config(schedule, prediction_type=prediction, timestep_spacing=spacing, steps_offset=1)
    stochastic = sampler == "dpmpp_2m_sde"
    scheduler = (
        UniPCMultistepScheduler(**settings)
        if sampler == "unipc"
        else DPMSolverMultistepScheduler(
            **settings, algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++", final_sigmas_type="zero"
        )
    )
    scheduler.set_timesteps(steps)
    noises = draws(steps + 1)
    walk = make_grid(schedule, steps, spacing, steps_offset=1, drop_last_level=SAMPLERS[sampler].drops_last_level)
    lend_levels(scheduler, schedule, walk)
    ours = our_walk(sampler, walk, prediction, network, noises)
    assert_same(ours, their_walk(scheduler, network, noises, hand_over=stochastic))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "euler", "heun"])
@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [35, 6])
def test_ramps(sampler: str, sigmas: SigmaSpacing, steps: int) -> None:
    kinds = {
        "dpmpp_2m": DPMSolverMultistepScheduler,
        "unipc": UniPCMultistepScheduler,
        "euler": EulerDiscreteScheduler,
        "heun": HeunDiscreteScheduler,
    }
    scheduler = kinds[sampler](
        **config(STABLE_DIFFUSION, timestep_spacing="linspace"), **{f"use_{sigmas}_sigmas": True}
    )
    scheduler.set_timesteps(steps)
    walk = make_grid(STABLE_DIFFUSION, steps, sigmas=sigmas)
    # DPM-Solver and UniPC feed these levels by the whole timestep nearby; ours are the fractions, as its Euler's are.
    fed = np.concatenate(
        [scheduler.timesteps.numpy()[:1], scheduler.timesteps.numpy()[1 :: 2 if sampler == "heun" else 1]]
    )
    np.testing.assert_allclose(walk.timesteps, fed, atol=1.0 if sampler in ("dpmpp_2m", "unipc") else 1e-2)
    assert_same(our_walk(sampler, walk, "epsilon", blind, draws(1)), their_walk(scheduler, blind, draws(1)))


def test_diffusers_euler_ramps_over_its_grid_and_ours_over_the_trained_range() -> None:
    scheduler = EulerDiscreteScheduler(**config(STABLE_DIFFUSION, timestep_spacing="leading"), use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    alphas, sigmas = noise_levels(STABLE_DIFFUSION)
    ours = make_grid(STABLE_DIFFUSION, 10, "leading", "karras")
    assert float(scheduler.sigmas[0]) == pytest.approx(sigmas[900] / alphas[900], rel=1e-5)
    assert ours.sigmas[0] / ours.alphas[0] == pytest.approx(sigmas[-1] / alphas[-1])


@pytest.mark.parametrize(("steps", "tolerance"), [(4, 2e-2), (20, 5e-3)])
def test_diffusers_stops_short_of_pure_noise_where_ours_begins_at_it(steps: int, tolerance: float) -> None:
    """Its multistep solvers take an alphas_cumprod of 0 for 2^-24, and so extrapolate from where ours knows nothing."""
    scheduler = DPMSolverMultistepScheduler(
        **config(STABLE_DIFFUSION, prediction_type="v_prediction", timestep_spacing="trailing"),
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(steps)
    assert float(scheduler.alphas_cumprod[-1]) == 2**-24
    walk = make_grid(Schedule(zero_terminal_snr=True), steps)
    ours = our_walk("dpmpp_2m", walk, "v_prediction", network, draws(1))
    assert_same(ours, their_walk(scheduler, network, draws(1)), tolerance)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 4, 28])
@pytest.mark.parametrize(
    ("spacing", "sigmas"),
    [("linspace", "schedule"), ("trailing", "schedule"), ("linspace", "karras"), ("linspace", "exponential")],
)
def test_flow_euler(shift: float, steps: int, spacing: Spacing, sigmas: SigmaSpacing) -> None:
    more = {} if sigmas == "schedule" else {f"use_{sigmas}_sigmas": True}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, **more)
    if spacing == "trailing":
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)
    walk = make_grid(Schedule("flow", shift=shift), steps, spacing, sigmas)
    np.testing.assert_allclose(walk.timesteps, scheduler.timesteps.numpy(), rtol=1e-5)
    ours = our_walk("flow_euler", walk, "flow", network, draws(1))
    assert_same(ours, their_walk(scheduler, network, draws(1)))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
def test_multistep_on_flow(sampler: str) -> None:
    """On a grid that begins below pure noise, where diffusers' UniPC would divide infinities."""
    walk = grid_from_timesteps(Schedule("flow"), [980, 800, 600, 400, 200, 50])
    kind = UniPCMultistepScheduler if sampler == "unipc" else DPMSolverMultistepScheduler
    scheduler = kind(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(6)
    scheduler.timesteps, scheduler.sigmas = torch.from_numpy(walk.timesteps), torch.from_numpy(walk.sigmas)
    ours = our_walk(sampler, walk, "flow", network, draws(1))
    assert_same(ours, their_walk(scheduler, network, draws(1)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("timesteps", [[999, 759, 499, 259], [999, 499], [999], [999, 759, 499, 259, 19]])
def test_lcm(prediction: Prediction, timesteps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = LCMScheduler(**config(STABLE_DIFFUSION, prediction_type=prediction))
    scheduler.set_timesteps(timesteps=timesteps)
    noises = draws(len(timesteps) + 1)
    walk = grid_from_timesteps(STABLE_DIFFUSION, timesteps)
    lend_levels(scheduler, STABLE_DIFFUSION, walk)
    ours = our_walk("lcm", walk, prediction, network, noises)
    assert_same(ours, their_walk(scheduler, network, noises, monkeypatch))


def test_diffusers_heun_outgrows_the_picture_on_the_cosine_schedule() -> None:
    """Its first step crosses sigma / alpha from 20,000 to 13. For data N(0, 0.5^2), a perfect network and 20 steps."""

    def perfect(z: Any, timestep: float) -> Any:
        alphas, sigmas = noise_levels(COSINE)
        alpha, sigma = float(alphas[int(timestep)]), float(sigmas[int(timestep)])
        return alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * z

    scheduler = HeunDiscreteScheduler(**config(COSINE, prediction_type="sample", timestep_spacing="trailing"))
    scheduler.set_timesteps(20)
    *_, theirs = their_walk(scheduler, perfect, draws(1))
    *_, ours = our_walk("heun", make_grid(COSINE, 20), "sample", perfect, draws(1))
    exact = 0.5 * draws(1)[0]
    assert np.abs(theirs / exact).mean() > 2
    np.testing.assert_allclose(ours, exact, rtol=0.05)


@pytest.mark.parametrize("steps", [1, 3, 10, 35, 50, 100])
@pytest.mark.parametrize("strength", [0.01, 0.1, 0.3, 0.5, 0.8, 0.999, 1.0])
def test_image_to_image_enters_the_grid_at_the_same_place(steps: int, strength: float) -> None:
    scheduler = DDIMScheduler(**config(STABLE_DIFFUSION, timestep_spacing="trailing"))
    scheduler.set_timesteps(steps)
    stand_in = SimpleNamespace(scheduler=scheduler)
    timesteps, count = StableDiffusionImg2ImgPipeline.get_timesteps(stand_in, steps, strength, "cpu")
    if count:
        tail = make_grid(STABLE_DIFFUSION, steps).start_at_strength(strength)
        assert (tail.timesteps.tolist(), tail.steps) == (timesteps.tolist(), count)
    else:
        with pytest.raises(InvalidRequest, match="leaves no step"):
            make_grid(STABLE_DIFFUSION, steps).start_at_strength(strength)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_guidance_rescale(share: float) -> None:
    guided, conditional = draws(2)
    theirs = rescale_noise_cfg(torch.from_numpy(guided), torch.from_numpy(conditional), share).numpy()
    np.testing.assert_allclose(rescale_factor(guided, conditional, share) * guided, theirs, rtol=1e-12)


def test_kept_latents_are_noised_to_the_next_level() -> None:
    """As StableDiffusionInpaintPipeline blends: known latents at the next timestep, and clean after the last."""
    scheduler = DDIMScheduler(**config(STABLE_DIFFUSION, timestep_spacing="trailing"))
    scheduler.set_timesteps(4)
    known, noise, z = (draw.astype(np.float32) for draw in draws(3))
    mask = (z > 0).astype(np.float32)
    held = InpaintBlend(known, mask, noise)
    for level, following in zip(
        make_grid(STABLE_DIFFUSION, 4).levels[1:], [*scheduler.timesteps[1:], None], strict=True
    ):
        proper = torch.from_numpy(known)
        if following is not None:
            proper = scheduler.add_noise(proper, torch.from_numpy(noise), following[None])
        np.testing.assert_allclose(
            held.after_step(z, level), (1 - mask) * proper.numpy() + mask * z, rtol=1e-5, atol=1e-6
        )
