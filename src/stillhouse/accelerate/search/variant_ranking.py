"""Ranking of pipeline variants before whole pictures are generated: predicted seconds and estimated error of each.

A variant is a choice of networks with sampling options. Its seconds follow from the measured seconds of its networks.
Its error follows from recorded trajectories, see `evaluation.trajectory.local_error`, and from the measured error of
its networks. Both only order the variants: whole pictures decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from stillhouse.accelerate.evaluation.trajectory import RecordedTrajectory, local_error
from stillhouse.accelerate.records.candidate import DECODER, Candidate
from stillhouse.accelerate.records.report import Report
from stillhouse.accelerate.records.trial import Trial
from stillhouse.accelerate.search.sampling_variants import (
    CACHED_STEP_COST,
    list_variants,
    sampling_plan,
    variant_candidate,
)
from stillhouse.diffusion import SamplingPlan
from stillhouse.pipelines.manifest import Manifest
from stillhouse.pipelines.roles import DENOISER

MAX_DENOISERS, MAX_DECODERS = 3, 3
"""Maximum numbers of denoisers and of decoders, each of another recipe and precision, that variants run with."""
_DECODER_SHARE = 0.1
"""Share of a picture's predicted seconds above which variants run with other decoders than the chosen one, too."""
_SMALL_SAVING = 0.03
"""Share of a picture below which the seconds that a decoder saves do not count, but its accuracy does."""
_BEATEN_BY = 3
"""A variant is left out if this many others are at least as fast and have at most its estimated error. The limit is
above 1 because the estimates are not exact.
"""


@dataclass(frozen=True, slots=True)
class NetworkChoice:
    """Networks that a variant runs with, and their measurements.

    Args:
        names: name of the chosen candidate (`Candidate.name`) by role: denoiser and decoder.
        evaluation_seconds: seconds of one evaluation of the denoiser, by number of rows.
        decoder_seconds: seconds of one picture in the decoder.
        error: relative error of pictures that these networks alone cause.
        can_cache: whether the denoiser supports feature caching.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    evaluation_seconds: Mapping[int, float] = field(default_factory=dict)
    decoder_seconds: float = 0.0
    error: float = 0.0
    can_cache: bool = False


@dataclass(frozen=True, slots=True)
class RankedVariant:
    """A variant with the predicted seconds of one picture, and its estimated relative error."""

    candidate: Candidate
    seconds: float
    error: float


def list_networks(report: Report, can_cache: Sequence[str] = ()) -> list[NetworkChoice]:
    """Return the networks that variants run with: the fastest accepted ones of each recipe and precision.

    The denoisers come first in the order of their speed. The decoder is that of the chosen networks. Others are added
    by `add_decoders`, because only few pipelines gain by them.

    Args:
        report: report with the measurements of all networks and a choice.
        can_cache: names of the denoisers that support feature caching.
    """
    chosen = report.evaluated_with.get(DECODER)
    decoder = [trial for trial in report.trials_of(DECODER) if trial.candidate.key == chosen and trial.ratio]
    decoder = decoder or _fastest(report, DECODER)[:1]
    return [
        _combine(report, denoiser, *decoder, can_cache=denoiser.candidate.name in can_cache)
        for denoiser in _fastest(report, DENOISER)[:MAX_DENOISERS]
    ]


def add_decoders(report: Report, networks: Sequence[NetworkChoice], picture_seconds: float) -> list[NetworkChoice]:
    """Return choices of networks, followed by the same denoisers with other decoders, where decoding takes long.

    That is the case if the decoder takes more than `_DECODER_SHARE` of a picture. No decoder is added where pictures
    with the fastest one were worse than allowed.

    Args:
        report: report with the measurements of all networks.
        networks: choices of `list_networks`.
        picture_seconds: predicted seconds of one picture of the fastest variant that may be accepted.
    """
    decoders = [
        trial for trial in _fastest(report, DECODER)[:MAX_DECODERS] if trial.candidate.name not in _decoders(networks)
    ]
    if not networks or DECODER in report.careful or networks[0].decoder_seconds <= _DECODER_SHARE * picture_seconds:
        return list(networks)
    names = {choice.names[DENOISER]: choice for choice in networks if DENOISER in choice.names}
    denoisers = [trial for trial in _fastest(report, DENOISER) if trial.candidate.name in names]
    others = [
        _combine(report, denoiser, decoder, can_cache=names[denoiser.candidate.name].can_cache)
        for denoiser, decoder in product(denoisers, decoders)
    ]
    return [*networks, *others]


def decoder_saves_little(fastest: Report, accurate: Report, picture_seconds: float) -> bool:
    """Return whether the decoder of one report makes a picture hardly faster than that of another.

    Args:
        fastest, accurate: reports that choose the fastest decoder and the most accurate one.
        picture_seconds: seconds of the picture.
    """
    return _decoder_seconds(accurate) - _decoder_seconds(fastest) <= _SMALL_SAVING * picture_seconds


def _decoder_seconds(report: Report) -> float:
    """Return the seconds of the chosen decoder by its speed-up over the baseline; 0 where there is no decoder."""
    chosen, baseline = (
        next((trial for trial in report.trials_of(DECODER) if trial.candidate.key == keys.get(DECODER)), None)
        for keys in (report.chosen, report.baselines)
    )
    if chosen is None or baseline is None or chosen.ratio is None or baseline.seconds is None:
        return 0.0
    return baseline.seconds.median / chosen.ratio.value


def rank_variants(
    manifest: Manifest,
    networks: Sequence[NetworkChoice],
    recorded: Sequence[RecordedTrajectory],
    evaluation_overhead: float = 0.0,
) -> list[RankedVariant]:
    """Return the variants that may be worth generating pictures for, the fastest first.

    All sampling options are combined with all choices of networks. A variant that `_BEATEN_BY` others beat in both
    predicted seconds and estimated error is left out.

    Args:
        manifest: manifest of the original pipeline.
        networks: choices of networks.
        recorded: trajectories of the original pipeline; empty: errors are estimated by the number of rows.
        evaluation_overhead: seconds of one evaluation besides the denoiser.
    """
    variants = []
    for options in list_variants(manifest, can_cache=any(choice.can_cache for choice in networks)):
        plan = sampling_plan(manifest, options)
        error = local_error(recorded, plan) if recorded else 1 / _denoiser_rows(plan)
        variants += [
            RankedVariant(
                variant_candidate({**choice.names, **options}),
                picture_seconds(plan, choice, evaluation_overhead),
                error + choice.error,
            )
            for choice in networks
            if choice.can_cache or plan.cache_interval == 1
        ]
    return sorted(unbeaten_variants(variants), key=lambda variant: variant.seconds)


def picture_seconds(plan: SamplingPlan, networks: NetworkChoice, evaluation_overhead: float = 0.0) -> float:
    """Return the predicted seconds of one picture.

    Args:
        plan: sampling plan of the picture.
        networks: the networks, with their measured seconds.
        evaluation_overhead: seconds of one evaluation besides the denoiser.
    """
    seconds = networks.decoder_seconds
    for index, rows in enumerate(plan.rows):
        share = CACHED_STEP_COST if index % plan.cache_interval else 1.0
        seconds += share * networks.evaluation_seconds.get(rows, float(rows)) + evaluation_overhead
    return seconds


def evaluation_seconds(trial: Trial, baseline: Trial) -> dict[int, float]:
    """Return the seconds of one evaluation of a denoiser by number of rows, 1 to 3 (one for each guidance branch).

    The seconds are those of the baseline divided by the candidate's speed-up, because both were measured in the same
    rounds. Where batches were timed, these give the ratio between numbers of rows; otherwise it is proportional.

    Args:
        trial: measurements of the denoiser.
        baseline: measurements of the baseline's denoiser.
    """
    assert trial.ratio is not None and baseline.seconds is not None
    seconds = baseline.seconds.median / trial.ratio.value

    def batch_seconds(rows: int) -> float:
        per_row = trial.batch.get(str(rows)) or trial.batch.get("1") or seconds / trial.rows
        return per_row * rows

    return {rows: seconds * batch_seconds(rows) / batch_seconds(trial.rows) for rows in (1, 2, 3)}


def unbeaten_variants(variants: Sequence[RankedVariant]) -> list[RankedVariant]:
    """Return the variants that fewer than `_BEATEN_BY` others beat in both seconds and estimated error."""
    kept: list[RankedVariant] = []
    for variant in sorted(variants, key=lambda item: (item.seconds, item.error)):
        # Variants are sorted by seconds, so that only earlier ones can beat a variant. Beaten ones need not be counted:
        # whatever they beat is beaten by at least as many others.
        if sum(other.error <= variant.error for other in kept) < _BEATEN_BY:
            kept.append(variant)
    return kept


def _decoders(networks: Sequence[NetworkChoice]) -> set[str]:
    return {choice.names[DECODER] for choice in networks if DECODER in choice.names}


def _fastest(report: Report, role: str) -> list[Trial]:
    """Return the fastest accepted trial of each recipe and precision of a network, fastest first."""
    accepted = [trial for trial in report.trials_of(role) if trial.status == "accepted" and trial.ratio]
    accepted.sort(key=lambda trial: trial.ratio.value if trial.ratio else 0.0, reverse=True)
    kinds: dict[tuple[str, str], Trial] = {}
    for trial in accepted:
        kinds.setdefault((trial.candidate.recipe, trial.candidate.precision), trial)
    return list(kinds.values())


def _combine(report: Report, denoiser: Trial, *decoder: Trial, can_cache: bool) -> NetworkChoice:
    trials = (denoiser, *decoder)
    baselines = [report.trial(trial.candidate.component, _baseline_key(report, trial)) for trial in trials]
    seconds = [
        baseline.seconds.median / trial.ratio.value
        for trial, baseline in zip(trials, baselines, strict=True)
        if trial.ratio and baseline.seconds
    ]
    return NetworkChoice(
        {trial.candidate.component: trial.candidate.name for trial in trials},
        evaluation_seconds(denoiser, baselines[0]),
        seconds[1] if decoder else 0.0,
        sum(_picture_error(trial) for trial in trials),
        can_cache,
    )


def _baseline_key(report: Report, trial: Trial) -> str:
    return report.baselines.get(trial.candidate.component, trial.candidate.key)


def _picture_error(trial: Trial) -> float:
    """Return the relative error of pictures that a network causes: of the final latents, or of the picture's values."""
    if trial.pictures is None:
        return 0.0
    return trial.pictures.drift or float(10 ** (-trial.pictures.psnr / 20))


def _denoiser_rows(plan: SamplingPlan) -> float:
    return sum(rows * (CACHED_STEP_COST if i % plan.cache_interval else 1.0) for i, rows in enumerate(plan.rows))
