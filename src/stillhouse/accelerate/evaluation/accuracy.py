"""Accuracy checks, cheapest first: finite outputs, tensor errors at every probe, whole pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stillhouse.accelerate.calibration.calibration_data import Probe
from stillhouse.accelerate.records.candidate import BATCH_DEPENDENT, NETWORK, PIPELINE
from stillhouse.accelerate.records.report import Bounds
from stillhouse.accelerate.records.trial import PictureFidelity, Trial
from stillhouse.core import Array, Picture
from stillhouse.measure.fidelity import Fidelity, compare_tensors
from stillhouse.measure.image_metrics import psnr, ssim

VAE_ENCODER = "encoder"
"""Name of the component that has no influence on pictures that are generated from a prompt alone."""
EXACT_SQNR = 90.0
"""SQNR in dB above which, at every probe, pictures count as identical. Its relative error of 3e-5 is below half a grey
level."""
SCREENING_PICTURES, FULL_PICTURES = 24, 128
"""Numbers of pictures that an oracle scores: to screen a pipeline candidate, and to accept it."""
_SCREENING_SLACK = 4.2
"""Percentage points by which a screening score may miss the bound: one picture of SCREENING_PICTURES."""
_Z95 = 1.959964


def compare_probes(reference: Sequence[Probe], outputs: Sequence[Probe]) -> dict[str, Fidelity]:
    """Return the fidelity of outputs by probe and output name. Probes of one noise level count as one.

    Args:
        reference, outputs: outputs of the baseline and of the candidate, in the same order.

    Raises:
        ValueError: an output is missing or has another shape.
    """
    pooled: dict[str, tuple[list[Array], list[Array]]] = {}
    for expected, actual in zip(reference, outputs, strict=True):
        if expected.feeds.keys() != actual.feeds.keys():
            raise ValueError(f"its outputs are {', '.join(actual.feeds)}, expected {', '.join(expected.feeds)}")
        for name, tensor in expected.feeds.items():
            if tensor.shape != actual.feeds[name].shape:
                raise ValueError(
                    f"output {name} has shape {list(actual.feeds[name].shape)}, expected {list(tensor.shape)}"
                )
            level = expected.label.partition(", ")[0]
            pair = pooled.setdefault(f"{level}, {name}" if len(expected.feeds) > 1 else level, ([], []))
            pair[0].append(tensor.ravel())
            pair[1].append(actual.feeds[name].ravel())
    return {label: compare_tensors(np.concatenate(a), np.concatenate(b)) for label, (a, b) in pooled.items()}


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
        latents: final latents of the baseline and the candidate, [P, C, h, w] each.
        correct: the oracle's verdicts of the baseline and the candidate, one for each picture.
        files: sample pictures, stored in the result.
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
    """Return the mean of the paired score difference and its 95 % interval (normal approximation): (mean, low, high).

    >>> paired_score_gain([True, False], [True, False])
    (0.0, 0.0, 0.0)
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    mean = float(change.mean())
    half_width = _Z95 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 1.0
    return mean, mean - half_width, mean + half_width


def find_violation(trial: Trial, bounds: Bounds) -> str:
    """Return a description of the first bound that the trial violates; empty where the trial satisfies all.

    Bounds on unmeasured values count as satisfied. Values that are not finite always violate.
    """
    if trial.candidate.is_batch_dependent:
        return BATCH_DEPENDENT
    for label, fidelity in trial.fidelity.items():
        if fidelity.nonfinite:
            return f"{fidelity.nonfinite} values at {label} are NaN or infinite; keep more nodes in f32"
        if bounds.max_mae is not None and not fidelity.mae <= bounds.max_mae:
            return f"a mean absolute error of {fidelity.mae:.3g} at {label} is above the {bounds.max_mae:.3g} allowed"
    limits: Mapping[str, tuple[float | None, float | None]] = {
        "SQNR of {:.1f} dB is below the bound of {:.1f} dB": (
            trial.worst_fidelity.sqnr if trial.worst_fidelity else None,
            bounds.min_sqnr,
        ),
        **_picture_limits(trial.pictures, bounds),
    }
    for message, (value, minimum) in limits.items():
        if value is not None and minimum is not None and not value >= minimum:
            return message.format(value, minimum)
    if bounds.max_memory is not None and trial.peak_bytes is not None and trial.peak_bytes > bounds.max_memory:
        gib = 2**30
        return f"peak memory of {trial.peak_bytes / gib:.2f} GiB is above the {bounds.max_memory / gib:.2f} GiB allowed"
    return ""


def judge_trial(trial: Trial, bounds: Bounds) -> Trial:
    """Return the measured trial with its verdict.

    A trial is not accepted before all required checks ran. The status is "skipped" for a component whose pictures were
    not compared, and for a sampling variant with a score over fewer than FULL_PICTURES pictures. Baseline pipelines are
    references and are not judged.
    """
    if trial.candidate.recipe == "baseline":
        return trial
    pictures, drop = trial.pictures, bounds.max_score_drop
    is_conclusive = pictures is None or pictures.score is None or pictures.count >= FULL_PICTURES
    if not is_conclusive:
        if not trial.candidate.options:  # sampling is unchanged, and the components were judged alone
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
    """Return whether the tensor errors are too small to be visible (EXACT_SQNR), so that no pictures are needed."""
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
