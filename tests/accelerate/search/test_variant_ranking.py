"""Ranking of variants: predicted seconds in closed form, and which variants are left out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillhouse.accelerate.evaluation.trajectory import RecordedTrajectory
from stillhouse.accelerate.records.candidate import Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import PictureFidelity
from stillhouse.accelerate.search.sampling_variants import sampling_plan, variant_candidate
from stillhouse.accelerate.search.variant_ranking import (
    NetworkChoice,
    RankedVariant,
    add_decoders,
    decoder_saves_little,
    evaluation_seconds,
    list_networks,
    picture_seconds,
    rank_variants,
    unbeaten_variants,
)
from stillhouse.measure.clock import Timing
from stillhouse.pipelines.load import find_pipeline
from stillhouse.pipelines.manifest import Manifest, read_manifest
from tests.accelerate.trials import make_report, make_trial

BF16 = NetworkChoice({"denoiser": "bf16"}, {1: 0.3, 2: 0.4, 3: 0.5}, 2.0, 0.01, can_cache=True)
F32 = NetworkChoice({"denoiser": "f32"}, {1: 0.6, 2: 1.0, 3: 1.4}, 2.0, 0.0, can_cache=False)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(find_pipeline("shapes"))


def test_seconds_are_those_of_the_evaluations_by_their_rows_and_of_the_decoder(manifest: Manifest) -> None:
    plan = sampling_plan(manifest, {"steps": "10", "guidance_interval": "0-0.5"})
    assert plan.rows == (2,) * 5 + (1,) * 5
    assert picture_seconds(plan, BF16) == pytest.approx(5 * 0.4 + 5 * 0.3 + 2.0)
    assert picture_seconds(plan, BF16, evaluation_overhead=0.1) == pytest.approx(5 * 0.4 + 5 * 0.3 + 2.0 + 1.0)
    cached = sampling_plan(manifest, {"steps": "10", "cache_interval": "2"})
    assert picture_seconds(cached, BF16) == pytest.approx(5 * 0.4 + 5 * 0.2 * 0.4 + 2.0)


def test_evaluations_take_the_seconds_of_the_baseline_divided_by_the_speedup() -> None:
    baseline = make_trial("onnxruntime", seconds=Timing(8.0, 8.0, 8.0, 5), rows=2)
    plain = make_trial("fast", 4.0, rows=2)
    assert evaluation_seconds(plain, baseline) == pytest.approx({1: 1.0, 2: 2.0, 3: 3.0})
    parallel = replace(plain, batch={"1": 1.5, "2": 1.0})  # one row takes 1.5, two take 2: no half
    assert evaluation_seconds(parallel, baseline) == pytest.approx({1: 1.5, 2: 2.0, 3: 4.5})


VARIANTS = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.01, 1)), max_size=30)


@given(VARIANTS)
def test_nothing_is_left_out_that_fewer_than_three_others_beat(numbers: list[tuple[float, float]]) -> None:
    variants = [RankedVariant(variant_candidate({"steps": str(i)}), *pair) for i, pair in enumerate(numbers)]
    kept = unbeaten_variants(variants)
    for variant in variants:
        beaten_by = sum(
            other.seconds <= variant.seconds and other.error <= variant.error for other in variants if other != variant
        )
        assert variant in kept or beaten_by >= 3
    for variant in kept:
        strictly = [other for other in kept if other.seconds < variant.seconds and other.error < variant.error]
        assert len(strictly) < 3


def test_variants_are_ordered_by_their_seconds_and_only_networks_that_can_cache_do(manifest: Manifest) -> None:
    ranked = rank_variants(manifest, [BF16, F32], ())
    assert [variant.seconds for variant in ranked] == sorted(variant.seconds for variant in ranked)
    cached = [variant.candidate.options for variant in ranked if "cache_interval" in variant.candidate.options]
    assert cached and all(options["denoiser"] == "bf16" for options in cached)
    assert {variant.candidate.options["denoiser"] for variant in ranked} >= {"bf16"}


def test_errors_come_from_trajectories_where_there_are_any(manifest: Manifest) -> None:
    levels = [evaluation.level for evaluation in sampling_plan(manifest, {}).evaluations]
    alphas, sigmas, times = (
        np.array([getattr(level, name) for level in levels]) for name in ("alpha", "sigma", "timestep")
    )
    still = np.ones((len(levels), 4, 2, 2), np.float32)
    # A network that always predicts the same: every plan follows its trajectory, so only the networks err.
    noisy = np.asarray(still * (alphas + 0.5 * sigmas).reshape(-1, 1, 1, 1), np.float32)
    recorded = RecordedTrajectory(alphas, sigmas, times, noisy, still, still, still[0])
    assert {round(variant.error, 3) for variant in rank_variants(manifest, [BF16], [recorded])} == {0.01}


def networks_report() -> Report:
    pictures = PictureFidelity(4, 40.0, 38.0, 0.99, drift=0.02)
    denoisers = [
        make_trial("onnxruntime", 1.0, seconds=Timing(8.0, 8.0, 8.0, 5)),
        make_trial("", 4.0, candidate=Candidate("denoiser", "openvino", "int8-static"), pictures=pictures),
        make_trial("", 3.9, candidate=Candidate("denoiser", "openvino", "int8-static", options={"streams": "2"})),
        make_trial("", 3.0, candidate=Candidate("denoiser", "openvino", precision="bf16")),
        make_trial("", 9.0, candidate=Candidate("denoiser", "openvino", "int4-weights"), status="rejected"),
    ]
    decoders = [
        make_trial("onnxruntime", 1.0, component="decoder", seconds=Timing(6.0, 6.0, 6.0, 5)),
        make_trial("", 3.0, candidate=Candidate("decoder", "openvino", "int8-static"), pictures=pictures),
        make_trial("", 2.0, candidate=Candidate("decoder", "openvino", precision="bf16")),
    ]
    baselines = {trials[0].candidate.component: trials[0].candidate.key for trials in (denoisers, decoders)}
    return make_report(*denoisers, *decoders, baselines=baselines)


def test_the_fastest_accepted_network_of_each_precision_is_tried() -> None:
    networks = list_networks(networks_report(), can_cache=["openvino f32, bf16"])
    assert [choice.names["denoiser"] for choice in networks] == [
        "openvino int8-static",
        "openvino f32, bf16",
        "onnxruntime f32",
    ]
    assert {choice.names["decoder"] for choice in networks} == {"openvino int8-static"}
    assert [choice.decoder_seconds for choice in networks] == [2.0] * 3
    assert [choice.can_cache for choice in networks] == [False, True, False]
    assert [choice.error for choice in networks] == pytest.approx([0.04, 0.02, 0.02])


def test_other_decoders_are_tried_where_decoding_takes_a_tenth_of_a_picture() -> None:
    report = networks_report()
    networks = list_networks(report)
    assert add_decoders(report, networks, picture_seconds=21.0) == networks
    with_decoders = add_decoders(report, networks, picture_seconds=19.0)
    assert with_decoders[:3] == networks
    others = {(choice.names["denoiser"], choice.names["decoder"]) for choice in with_decoders[3:]}
    assert others == {
        (choice.names["denoiser"], decoder)
        for choice in networks
        for decoder in ("openvino f32, bf16", "onnxruntime f32")
    }
    assert {choice.decoder_seconds for choice in with_decoders} == {2.0, 3.0, 6.0}


def test_variants_run_with_the_chosen_decoder_and_no_faster_one_where_care_is_needed() -> None:
    report = networks_report()
    bf16 = Candidate("decoder", "openvino", precision="bf16")
    careful = replace(report, evaluated_with={"decoder": bf16.key}, careful=("decoder",))
    networks = list_networks(careful)
    assert {choice.names["decoder"] for choice in networks} == {bf16.name}
    assert add_decoders(careful, networks, picture_seconds=1e-6) == networks
    with_decoders = add_decoders(replace(careful, careful=()), networks, picture_seconds=1e-6)
    assert {choice.names["decoder"] for choice in with_decoders} == {
        "openvino int8-static",
        bf16.name,
        "onnxruntime f32",
    }


@pytest.mark.parametrize(("picture_seconds", "is_little"), [(20.0, False), (30.0, False), (40.0, True)])
def test_a_decoder_that_saves_less_than_three_percent_of_a_picture_is_not_worth_its_error(
    picture_seconds: float, is_little: bool
) -> None:
    """The decoder in int8 takes 2 seconds, that in bf16 takes 3."""
    report = networks_report()
    int8, bf16 = Candidate("decoder", "openvino", "int8-static"), Candidate("decoder", "openvino", precision="bf16")
    fastest, accurate = (replace(report, chosen={"decoder": decoder.key}) for decoder in (int8, bf16))
    assert decoder_saves_little(fastest, accurate, picture_seconds) is is_little
    assert decoder_saves_little(fastest, fastest, 1e-6) and decoder_saves_little(make_report(), make_report(), 1.0)
