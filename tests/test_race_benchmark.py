"""The race: formats that other engines read, a plain loop that equals diffusers, tables that say what was measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks.race import plain_loop, prepare
from benchmarks.race.grid import MAX_WAYS, make_ways, ways_table
from benchmarks.race.original_layout import write_single_file
from benchmarks.race.plain_loop import PlainLoop
from benchmarks.race.sdxl import sdxl_table
from benchmarks.race.stopwatch import Timed
from benchmarks.race.students import students_table
from benchmarks.race.subject import GUIDANCE, initial_noise
from benchmarks.race.subject_process import file_stem
from benchmarks.race.subjects import CACHING, EXACT, REFERENCE, STEPS, SUBJECTS
from benchmarks.race.tables import best_peer, race_table, summary_table
from benchmarks.step_caching import caching_table

SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A checkpoint with the levels of Stable Diffusion 1.5 and few channels, its U-Net and its autoencoder."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    (folder / "text_encoder").mkdir()
    save_file({"text_model.final_layer_norm.weight": torch.ones(4)}, folder / "text_encoder" / "model.safetensors")
    return folder, unet, vae


def test_the_single_file_is_read_back_by_diffusers(networks: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, unet, vae = networks
    write_single_file(folder, tmp_path / "one.safetensors")
    written = load_file(tmp_path / "one.safetensors")
    assert all(weight.dtype == torch.float16 for weight in written.values())
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in written
    unet_config = {**unet.config, "layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    for module, convert, config in (
        (unet, convert_ldm_unet_checkpoint, unet_config),
        (vae, convert_ldm_vae_checkpoint, vae.config),
    ):
        back = convert(dict(written), config)
        assert back.keys() == module.state_dict().keys()
        for name, weight in module.state_dict().items():
            assert torch.equal(back[name].reshape(weight.shape).float(), weight.half().float()), name


@pytest.mark.parametrize("steps", STEPS)
def test_the_plain_loop_takes_the_steps_of_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = DDIMScheduler(**SCHEDULER)
    monkeypatch.setattr(plain_loop, "_cumulative_alphas", lambda: scheduler.alphas_cumprod.double().numpy())
    monkeypatch.setattr(plain_loop, "_scaling_factor", lambda: 0.5)
    monkeypatch.setattr(plain_loop, "_open_tokenizer", lambda: lambda text: np.full((1, 77), len(text)))

    def evaluate(sample: NDArray[Any], timestep: int, states: NDArray[Any]) -> NDArray[Any]:
        offset = states.mean((1, 2))[:, None, None, None]
        return np.asarray(np.tanh(sample * (1 + timestep / 1000) + offset))

    decoded: list[NDArray[Any]] = []

    def decode(latents: NDArray[Any]) -> NDArray[Any]:
        decoded.append(latents)
        return np.zeros((1, 3, 512, 512), np.float32)

    loop = PlainLoop("f32", lambda ids: np.full((1, 77, 768), ids.mean(), np.float32), evaluate, decode)
    picture = loop.generate("a dog", steps)
    assert picture.image.shape == (512, 512, 3)
    assert len(picture.evaluations) == steps

    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(initial_noise())
    states = np.stack([np.full((77, 768), length, np.float32) for length in (0, 5)])
    for timestep in scheduler.timesteps.tolist():
        plain, guided = torch.from_numpy(evaluate(np.concatenate([latents.numpy()] * 2), timestep, states)).chunk(2)
        latents = scheduler.step(plain + GUIDANCE * (guided - plain), timestep, latents).prev_sample
    np.testing.assert_allclose(decoded[0], latents.numpy() / 0.5, rtol=1e-3, atol=1e-4)


def test_a_stopwatch_keeps_the_seconds_of_each_call_once() -> None:
    timed = Timed(lambda: "x")
    assert (timed(), timed(), len(timed.take()), timed.take()) == ("x", "x", 2, ())


def row(ratio: float, rounds: int = 3) -> dict[str, Any]:
    picture = {
        "seconds": 10.0 * ratio,
        "reference_seconds": 10.0,
        "ratio": {"value": ratio, "low": ratio - 0.1, "high": ratio + 0.1},
        "rounds": rounds,
    }
    return {
        "precision": "bf16",
        "load_seconds": 5.0,
        "first_picture_seconds": 7.0,
        "reference_load_seconds": 6.0,
        "reference_first_picture_seconds": 8.0,
        "evaluation": 2.0,
        "decoding": None,
        "reference_evaluation": 1.0,
        "reference_decoding": 3.0,
        "pictures": {str(steps): picture for steps in STEPS},
        "peak_bytes": 2**30,
        "reference_peak_bytes": 2**31,
        "psnr": 33.25,
        "reference": {"precision": "openvino bf16", "sqnr": 26.5},
    }


RESULTS = {
    "rows": {
        EXACT: row(4.0, rounds=1),
        "OpenVINO GenAI, static": row(1.9),
        "OpenVINO GenAI, static, TaylorSeer": row(1.5),
        CACHING: row(0.5),
        "plain loop on OpenVINO": row(1.2),
        "stable-diffusion.cpp, q8_0": {"reason": "SubjectFailed: no module"},
    },
}


def test_the_table_has_a_row_for_each_subject_and_a_reason_for_what_is_missing() -> None:
    text = race_table(RESULTS)
    assert "**4.00x** (one picture)" in text
    assert "**1.90x** (1.80 to 2.00)" in text
    assert f"**{REFERENCE}** | openvino bf16 | 1.00 s | 3.0 s | 10.0 s" in text
    assert "stable-diffusion.cpp, q8_0: SubjectFailed: no module" in text
    (untimed,) = (line for line in text.splitlines() if line.startswith("Not timed yet: "))
    assert "diffusers, bf16;" in untimed and "OpenVINO GenAI, static;" not in untimed and REFERENCE not in untimed


def test_the_summary_has_the_systems_that_people_run() -> None:
    text = summary_table(RESULTS)
    assert f"| {EXACT} | bf16 | 40.0 s | 40.0 s | **4.00x** (one picture) | **4.00x** (one picture) |" in text
    assert f"| **{REFERENCE}** | openvino bf16 | 10.0 s | 10.0 s |  |  |" in text
    assert f"| {CACHING} | bf16 | 5.0 s | 5.0 s | slower by **2.00x** (1.67 to 2.50) |" in text
    assert not any(name in text for name in ("plain loop", "stable-diffusion.cpp", "TaylorSeer"))


def test_a_ratio_whose_interval_contains_one_is_no_gain() -> None:
    results = {"rows": {CACHING: row(0.9), EXACT: row(6.0)}}
    ratio = results["rows"][CACHING]["pictures"]["3"]["ratio"]
    ratio |= {"low": 0.77, "high": 1.21}
    assert f"| {ratio['value']:.2f}x (0.77 to 1.21) |" in summary_table(results)


def test_the_best_peer_is_a_system_that_people_run() -> None:
    """A plain loop on our own graph is a row, not a peer, and neither is a picture of estimated steps."""
    assert best_peer(RESULTS, 20) == "OpenVINO GenAI, static"


def test_names_of_subjects_are_names_of_files() -> None:
    stems = [file_stem(name) for name in SUBJECTS]
    assert len(set(stems)) == len(stems)
    assert all(stem.replace("-", "").replace(".", "").replace("_", "").isalnum() for stem in stems)


def test_what_an_engine_needs_is_made_only_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(prepare, "BUILD", tmp_path)
    monkeypatch.setattr(prepare, "find_spec", lambda name: None if name == "stable_diffusion_cpp" else object())
    monkeypatch.setattr("benchmarks.race.prepare.subprocess.run", lambda command, check: made.append(command[3]))
    assert list(prepare.prepare("20m")) == ["checkpoint", "genai", "genai-int8", "accelerated", "cached"]
    assert made == ["checkpoint", "genai", "genai-int8", "accelerated", "cached"]
    assert prepare.prepare("20m") == {}


def test_the_students_gain_is_against_one_picture_of_diffusers() -> None:
    rows = {"Stillhouse, student": {"3": [5.0, 4.0, 8.0], "1": [2.0, 2.0]}}
    table = students_table({"teacher": {"name": EXACT, "steps": 35, "seconds": 200.0}, "rows": rows})
    assert "| diffusers, f32, 35 guided steps | 200.0 |  |" in table
    assert "| Stillhouse, student, 3 steps | 5.00 | **40x** (25 to 50) |" in table
    assert "| Stillhouse, student, 1 step | 2.00 | **100x** (100 to 100) |" in table


def test_the_price_of_step_caching_is_paired() -> None:
    marks = {"1": "1111100000", "3": "1110100000"}
    rows = {interval: {"captions": 10, "all_correct": mark, "strict": mark} for interval, mark in marks.items()}
    table = caching_table({"network": "openvino int8 bf16", "steps": "20", "rows": rows})
    assert "| all | 50.0 % | 50.0 % |" in table
    assert "| 1 of 3 | 40.0 % (-10.0, " in table
    assert "10 captions, 20 steps of DDIM with guidance, openvino int8 bf16." in table


def test_the_grid_shows_the_fastest_ways_beside_the_choice() -> None:
    def row(value: float) -> dict[str, Any]:
        return {"seconds": 2 / value, "ratio": {"value": value, "low": value - 0.1, "high": value + 0.1}, "sqnr": 30.0}

    rows = {f"denoiser: way {place}": row(value) for place, value in enumerate((0.5, 1.0, 0.25, 0.8))}
    rows["denoiser: way 4"] = {"reason": "it does not open"}
    lines = ways_table({"rows": rows, "chosen": {"denoiser": "way 1"}}).splitlines()[2:]
    assert lines[0] == "| denoiser, 4 of 5 ways run, chosen: way 1 | way 1 | 2.00 | 1.00 (0.90 to 1.10) | 30.0 dB |"
    assert [line.split(" | ")[1] for line in lines] == ["way 1", "way 3", "way 0"]


def test_the_grid_has_each_way_once_and_no_more_than_it_says() -> None:
    ways = [way for component in ("denoiser", "decoder") for way in make_ways(component)]
    assert len({(way.component, way.name) for way in ways}) == len(ways) <= MAX_WAYS


def test_the_large_shape_shows_seconds_or_the_reason() -> None:
    timings = {"precision": "bf16", "seconds": 90.4, "evaluation": 10.26, "decoding": 8.0}
    rows = {
        "OpenVINO GenAI, static": {**timings, "load_seconds": 21.0, "peak_bytes": 3 << 30},
        "other": {"reason": "no"},
    }
    table = sdxl_table({"rows": rows})
    assert "| OpenVINO GenAI, static | bf16 | 90 s | 10.3 s | 8.0 s | 21 s | 3.0 GiB |" in table
    assert "\nother: no.\n" in table
