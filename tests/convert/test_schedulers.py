from typing import Any

import pytest

from stillhouse.convert.families.sdxl import SDXL
from stillhouse.convert.families.stable_diffusion import STABLE_DIFFUSION
from stillhouse.convert.schedulers import SAMPLERS, SamplingConfig, read_sampling_config
from stillhouse.diffusion import Schedule
from stillhouse.errors import ImportFailed

COSINE = Schedule("squaredcos_cap_v2", 0.0001, 0.02)


def walk(name: str, **fields: Any) -> SamplingConfig:
    return read_sampling_config({"_class_name": name, **fields}, name)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_scheduler_with_stable_diffusion_s_settings(name: str) -> None:
    found = walk(name, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert found.sampling.schedule == Schedule()
    assert found.sampling.prediction == "epsilon" and found.sampling.sigmas == "schedule"
    assert found.sampler == SAMPLERS[name]


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("DDIMScheduler", {}, {"schedule": Schedule("linear", 0.0001, 0.02), "spacing": "leading", "steps_offset": 0}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"sigmas": "karras", "spacing": "linspace"}),
        ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, {"sigmas": "exponential"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {"sampler": "dpmpp_2m_sde"}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {"spacing": "trailing"}),
        ("DDIMScheduler", {"prediction_type": "v_prediction", "steps_offset": 1}, {"steps_offset": 1}),
        ("DDPMScheduler", {"prediction_type": "sample"}, {"prediction": "sample"}),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {"schedule": COSINE}),
        ("LCMScheduler", {}, {"spacing": "trailing"}),
    ],
)
def test_settings(name: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    found = walk(name, **fields)
    assert {field: getattr(found if field == "sampler" else found.sampling, field) for field in expected} == expected


def test_the_older_pipelines_offset_their_steps_by_one() -> None:
    config = {"steps_offset": 0}
    assert read_sampling_config(config, "DDIMScheduler", steps_offset=1).sampling.steps_offset == 1
    assert STABLE_DIFFUSION.steps_offset == 1 and SDXL.steps_offset is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trained_betas": [0.1, 0.2]}, "its own betas"),
        ({"beta_schedule": "sigmoid"}, "configuration cannot be used: there is no schedule 'sigmoid'"),
        ({"use_beta_sigmas": True}, "sets use_beta_sigmas; allowed: use_karras_sigmas"),
        (
            {"prediction_type": "flow_prediction"},
            "prediction_type is 'flow_prediction'; allowed: epsilon, sample, v_pr",
        ),
    ],
)
def test_settings_without_a_counterpart(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ImportFailed, match=message):
        walk("EulerDiscreteScheduler", **fields)


def test_a_scheduler_that_is_not_known() -> None:
    with pytest.raises(ImportFailed, match="scheduler IPNDMScheduler is not known; allowed: DDIMScheduler"):
        read_sampling_config({}, "IPNDMScheduler")


def test_thresholding_is_refused() -> None:
    with pytest.raises(ImportFailed, match="thresholding is true"):
        read_sampling_config({"thresholding": True}, "DDIMScheduler")
