"""Accuracy checks of a candidate against the f32 baseline: outputs for probes, then whole pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stillhouse.accelerate.evaluation.output_fidelity import MIN_EQUAL_SQNR
from stillhouse.accelerate.evaluation.score_decision import LOOKS, Decision, ScoreGain, decide_gains, paired_score_gain
from stillhouse.accelerate.records.candidate import BATCH_DEPENDENT, NETWORK, PIPELINE
from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.records.trial import PictureFidelity, Trial
from stillhouse.core import Array, Picture
from stillhouse.measure.image_metrics import psnr, ssim

VAE_ENCODER = "encoder"
"""Name of the VAE encoder, which has no influence on pictures that are generated from a prompt alone."""
EXACT_SQNR = 90.0
"""Minimum SQNR in dB of a network's outputs at which its pictures are assumed to equal the baseline's, and are not
compared. The relative error is then at most 3e-5, which is less than half a grey level of a picture."""
SCREENING_PICTURES = LOOKS[0]
"""Number of pictures whose correctness a program (oracle) scores first where a pipeline runs with other sampling
options; see `score_decision.LOOKS`."""
MIN_AGREEMENT = 0.99
"""Minimum share of rows in which a candidate chooses the same class as the baseline, apart from ties."""
UNPROVEN = (
    "its error in {} cannot be judged: no probe excites this output of the baseline; give real inputs by --inputs"
)
"""Reason that the report gives where a candidate changes the arithmetic and the probes cannot show what this does."""


def compare_pictures(
    baseline: Iterable[Picture],
    pictures: Iterable[Picture],
    latents: tuple[Array, Array] | None = None,
    correct: tuple[Sequence[bool], Sequence[bool]] | None = None,
    files: tuple[str, ...] = (),
    strict: tuple[Sequence[bool], Sequence[bool]] | None = None,
) -> PictureFidelity:
    """Return the difference between a candidate's pictures and the baseline's.

    Args:
        baseline, pictures: uint8 [H, W, 3] pictures of the same prompts and seeds, in the same order.
        latents: final latents of the baseline and of the candidate, [P, C, h, w] each; None: unknown.
        correct: whether a program (oracle) finds each picture correct, for the baseline and for the candidate; None:
            there is no such program.
        files: paths of sample pictures, stored in the result.
        strict: as `correct`, for a stricter verdict that also demands sharp edges and flat colours.
    """
    pairs = list(zip(baseline, pictures, strict=True))
    psnrs = [psnr(*pair) for pair in pairs]
    ssims = [ssim(*pair) for pair in pairs]
    drift = None
    if latents is not None:
        reference, actual = (np.asarray(values, np.float64).reshape(len(values), -1) for values in latents)
        scale = np.maximum(np.linalg.norm(reference, axis=1), 1e-12)
        drift = float(np.mean(np.linalg.norm(actual - reference, axis=1) / scale))
    score = baseline_score = gain = None
    if correct is not None:
        baseline_score, score = (float(np.mean(values)) for values in correct)
        gain = paired_score_gain(*correct)
    return PictureFidelity(
        len(psnrs),
        float(np.mean(psnrs)),
        min(psnrs),
        float(np.mean(ssims)),
        drift,
        score,
        baseline_score,
        gain,
        files,
        paired_score_gain(*strict) if strict is not None else None,
    )


def find_violation(trial: Trial, bounds: Bounds) -> str:
    """Return a sentence about the first bound that a trial (measurements of a candidate) violates; empty if none.

    A bound on a value that was not measured counts as satisfied. Outputs that are not finite are a violation whatever
    the bounds are, and so is a picture that depends on the other pictures of its batch.
    """
    if trial.candidate.is_batch_dependent:
        return BATCH_DEPENDENT
    if trial.mismatch:
        return trial.mismatch
    for label, fidelity in trial.fidelity.items():
        if fidelity.nonfinite:
            return f"{fidelity.nonfinite} values at {label} are NaN or infinite; keep more nodes in f32"
        if bounds.max_mae is not None and not fidelity.mae <= bounds.max_mae:
            return f"a mean absolute error of {fidelity.mae:.3g} at {label} is above the {bounds.max_mae:.3g} allowed"
    limits: Mapping[str, tuple[float | None, float | None]] = {
        f"SQNR of {{:.1f}} dB{_worst_place(trial)} is below the bound of {{:.1f}} dB": (
            trial.worst_fidelity.sqnr if trial.worst_fidelity else None,
            bounds.min_sqnr,
        ),
        **_picture_limits(trial.pictures, bounds),
    }
    for message, (value, minimum) in limits.items():
        if value is not None and minimum is not None and not value >= minimum:
            return message.format(value, minimum)
    if bounds.min_sqnr is not None and (violation := _class_violation(trial)):
        return violation
    if trial.unproven and bounds.min_sqnr is not None and not _has_equal_arithmetic(trial):
        return UNPROVEN.format(", ".join(trial.unproven))
    if bounds.max_memory is not None and trial.peak_bytes is not None and trial.peak_bytes > bounds.max_memory:
        gib = 2**30
        return f"peak memory of {trial.peak_bytes / gib:.2f} GiB is above the {bounds.max_memory / gib:.2f} GiB allowed"
    return ""


def _class_violation(trial: Trial) -> str:
    for label, fidelity in trial.fidelity.items():
        if fidelity.agreement is not None and fidelity.agreement < MIN_AGREEMENT:
            return f"at {label}, {fidelity.agreement:.1%} of the classes agree, below the {MIN_AGREEMENT:.0%} required"
    return ""


def _has_equal_arithmetic(trial: Trial) -> bool:
    """Return whether a candidate computes the unchanged graph in f32, and its outputs equal the baseline's.

    Such a candidate needs no probe that excites every output, because it changes no arithmetic.
    """
    is_unchanged = (trial.candidate.recipe, trial.candidate.precision) == ("f32", "f32")
    return is_unchanged and all(
        fidelity.has_signal or fidelity.sqnr >= MIN_EQUAL_SQNR for fidelity in trial.fidelity.values()
    )


def _worst_place(trial: Trial) -> str:
    place = trial.worst_fidelity.place if trial.worst_fidelity else ""
    return f" in {place}" if place else ""


def judge_trial(trial: Trial, bounds: Bounds) -> Trial:
    """Return a copy of a trial (measurements of a candidate) with its verdict as `status` and `reason`.

    The status is "rejected" where a bound is violated, and "skipped" where a check is missing: for a network whose
    pictures were not compared, and for a distilled student or other sampling options as long as the scores of their
    pictures are undecided (see `score_decision.decide_gains`). Otherwise the status is "accepted". A trial of a
    reference pipeline (recipe "baseline") is returned unchanged.
    """
    if trial.candidate.recipe == "baseline":
        return trial
    decision = decide_pictures(trial, bounds)
    if trial.candidate.component == PIPELINE and trial.pictures and trial.pictures.score is not None:
        # The interval of the scores decides, not their mean. A minimum score needs as many pictures as an acceptance.
        bounds = replace(bounds, max_score_drop=None, min_score=bounds.min_score if decision == "accepted" else None)
    if reason := find_violation(trial, bounds):
        return replace(trial, status="rejected", reason=reason)
    if decision == "rejected":
        return replace(trial, status="rejected", reason=_describe_gains(trial, "so the score is worse than allowed"))
    if _needs_pictures(trial, bounds):
        reason = "its pictures were not compared, because it violated an earlier bound; run the sweep again"
        return replace(trial, status="skipped", reason=reason)
    if decision == "undecided" and trial.candidate.options:
        return replace(trial, status="skipped", reason=_describe_gains(trial, "too few pictures to decide"))
    return replace(trial, status="accepted", reason="")


def decide_pictures(trial: Trial, bounds: Bounds) -> Decision:
    """Return the decision that the scores of a pipeline candidate's pictures allow; see `score_decision.decide_gains`.

    Trials of networks, and pictures without scores, count as accepted here, because other bounds decide about them.
    """
    pictures = trial.pictures
    if trial.candidate.component != PIPELINE or pictures is None or pictures.score is None:
        return "accepted"
    drop = 1.0 if bounds.max_score_drop is None else bounds.max_score_drop / 100
    return decide_gains(score_gains(trial), pictures.count, drop)


def score_gains(trial: Trial) -> list[ScoreGain]:
    """Return the gains of all scores of a trial's pictures over the baseline's; empty where nothing was scored."""
    pictures = trial.pictures
    gains = (pictures.score_gain, pictures.strict_gain) if pictures else ()
    return [ScoreGain(*gain) for gain in gains if gain is not None]


def _describe_gains(trial: Trial, conclusion: str) -> str:
    """Return a sentence with the gains of a trial's scores and their 95 % intervals, then a conclusion."""
    assert trial.pictures is not None
    names = ("correct", "sharp and correct")
    gains = [
        f"{name} {100 * gain.mean:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        for name, gain in zip(names, score_gains(trial), strict=False)
    ]
    return f"{trial.pictures.count} pictures: {', '.join(gains)}: {conclusion}"


def is_visually_exact(trial: Trial) -> bool:
    """Return whether the lowest SQNR of a network's outputs is at least EXACT_SQNR, so that no error is visible.

    Pictures of such a candidate need not be compared. The result is False where no outputs were compared.
    """
    return trial.worst_fidelity is not None and trial.worst_fidelity.sqnr >= EXACT_SQNR


def _needs_pictures(trial: Trial, bounds: Bounds) -> bool:
    is_bounded = bounds.min_psnr is not None or bounds.min_ssim is not None
    is_checked = trial.pictures is not None or is_visually_exact(trial)
    return is_bounded and not is_checked and trial.candidate.component not in (NETWORK, PIPELINE, VAE_ENCODER)


def _picture_limits(pictures: PictureFidelity | None, bounds: Bounds) -> dict[str, tuple[float | None, float | None]]:
    if pictures is None:
        return {}
    drop = None if pictures.score_gain is None else 100 * pictures.score_gain[0]
    allowed = None if bounds.max_score_drop is None else -bounds.max_score_drop
    return {
        "the score changes by {:+.1f} points, and may by {:+.1f}": (drop, allowed),
        "a score of {:.3f} is below the bound of {:.3f}": (pictures.score, bounds.min_score),
        "a mean PSNR of {:.1f} dB is below the bound of {:.1f} dB": (pictures.psnr, bounds.min_psnr),
        "a mean SSIM of {:.3f} is below the bound of {:.3f}": (pictures.ssim, bounds.min_ssim),
    }
