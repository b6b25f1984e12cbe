"""Accuracy checks of a candidate against the f32 baseline: outputs for probes, then whole pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stillhouse.accelerate.evaluation.output_fidelity import MIN_EQUAL_SQNR
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
SCREENING_PICTURES, FULL_PICTURES = 24, 128
"""Numbers of pictures whose correctness a program (oracle) scores when a pipeline runs with other sampling options: for
a quick check (screening), and for the decision whether the options are accepted."""
_SCREENING_SLACK = 4.2
"""Percentage points that are added to the allowed drop of the score where only SCREENING_PICTURES pictures are scored:
the share of one picture, so that one wrong picture more does not decide."""
MIN_AGREEMENT = 0.99
"""Minimum share of rows in which a candidate chooses the same class as the baseline, apart from ties."""
UNPROVEN = (
    "its error in {} cannot be judged: no probe excites this output of the baseline; give real inputs by --inputs"
)
"""Reason that the report gives where a candidate changes the arithmetic and the probes cannot show what this does."""
_Z95 = 1.959964


def compare_pictures(
    baseline: Iterable[Picture],
    pictures: Iterable[Picture],
    latents: tuple[Array, Array] | None = None,
    correct: tuple[Sequence[bool], Sequence[bool]] | None = None,
    files: tuple[str, ...] = (),
) -> PictureFidelity:
    """Return the difference between a candidate's pictures and the baseline's.

    Args:
        baseline, pictures: uint8 [H, W, 3] pictures of the same prompts and seeds, in the same order.
        latents: final latents of the baseline and of the candidate, [P, C, h, w] each; None: unknown.
        correct: whether a program (oracle) finds each picture correct, for the baseline and for the candidate; None:
            there is no such program.
        files: paths of sample pictures, stored in the result.
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
        len(psnrs), float(np.mean(psnrs)), min(psnrs), float(np.mean(ssims)), drift, score, baseline_score, gain, files
    )


def paired_score_gain(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Return how much the score (share of correct pictures) changes, with its 95 % interval: (mean, low, high).

    The interval is a normal approximation for paired differences. For a single picture, the interval is the mean minus
    1 to the mean plus 1.

    Args:
        before, after: whether each picture is correct, for two ways to generate the same pictures, in the same order.

    >>> paired_score_gain([True, False], [True, False])
    (0.0, 0.0, 0.0)
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    mean = float(change.mean())
    half_width = _Z95 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 1.0
    return mean, mean - half_width, mean + half_width


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
    pictures were not compared, and for a distilled student or other sampling options where fewer than FULL_PICTURES
    pictures were scored. Otherwise the status is "accepted". A trial of a reference pipeline (recipe "baseline") is
    returned unchanged.
    """
    if trial.candidate.recipe == "baseline":
        return trial
    pictures, drop = trial.pictures, bounds.max_score_drop
    is_conclusive = pictures is None or pictures.score is None or pictures.count >= FULL_PICTURES
    if not is_conclusive:
        # A candidate without options does not change the sampling, and each of its networks was judged before. So no
        # limit applies to the drop of its score as long as too few pictures were scored.
        if not trial.candidate.options:
            drop = None
        elif drop is not None and pictures and pictures.count <= SCREENING_PICTURES:
            drop += _SCREENING_SLACK
        bounds = replace(bounds, max_score_drop=drop, min_score=None)
    if reason := find_violation(trial, bounds):
        return replace(trial, status="rejected", reason=reason)
    if _needs_pictures(trial, bounds):
        reason = "its pictures were not compared, because it violated an earlier bound; run the sweep again"
        return replace(trial, status="skipped", reason=reason)
    if is_conclusive or not trial.candidate.options:
        return replace(trial, status="accepted", reason="")
    assert pictures is not None
    reason = (
        f"accepted on {pictures.count} pictures, but {FULL_PICTURES} were not generated: another variant came first "
        "or the time budget ended"
    )
    return replace(trial, status="skipped", reason=reason)


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
