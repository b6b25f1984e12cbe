"""The quality ladder, cheap rungs first: finite numbers, tensors at every probe, whole pictures."""

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

VAE_ENCODER = "vae_encoder"
"""The component that no picture from a prompt alone shows anything of."""
EXACT_SQNR = 90.0
"""dB at every probe from which pictures are taken to be the same: an error of 3e-5, below half a grey level."""
SCREENING_PICTURES, FULL_PICTURES = 24, 128
"""Pictures by which a way to walk is first looked at, and by which it is accepted, where an oracle reads them."""
_SCREENING_SLACK = 4.2
"""Points that a rough score may fall beyond the bound: one picture of `ROUGH`."""
_Z95 = 1.959964


def compare_probes(reference: Sequence[Probe], outputs: Sequence[Probe]) -> dict[str, Fidelity]:
    """How far the outputs lie from the reference, by probe and output; probes of one noise level are taken together.

    Raises:
        ValueError: an output is missing or has another shape.
    """
    together: dict[str, tuple[list[Array], list[Array]]] = {}
    for wanted, got in zip(reference, outputs, strict=True):
        if wanted.feeds.keys() != got.feeds.keys():
            raise ValueError(f"it gives {', '.join(got.feeds)} and not {', '.join(wanted.feeds)}")
        for name, tensor in wanted.feeds.items():
            if tensor.shape != got.feeds[name].shape:
                raise ValueError(f"output {name} has shape {list(got.feeds[name].shape)}, not {list(tensor.shape)}")
            level = wanted.label.partition(", ")[0]
            pair = together.setdefault(f"{level}, {name}" if len(wanted.feeds) > 1 else level, ([], []))
            pair[0].append(tensor.ravel())
            pair[1].append(got.feeds[name].ravel())
    return {label: compare_tensors(np.concatenate(a), np.concatenate(b)) for label, (a, b) in together.items()}


def compare_pictures(
    baseline: Iterable[Picture],
    pictures: Iterable[Picture],
    latents: tuple[Array, Array] | None = None,
    correct: tuple[Sequence[bool], Sequence[bool]] | None = None,
    files: tuple[str, ...] = (),
) -> PictureFidelity:
    """How far pictures lie from the baseline's of the same prompts and seeds.

    Args:
        baseline, pictures: in the same order.
        latents: the final latents of both, [P, C, h, w].
        correct: which of both the oracle calls all correct.
        files: of the strip.
    """
    pairs = list(zip(baseline, pictures, strict=True))
    ratios = [psnr(*pair) for pair in pairs]
    alike = [ssim(*pair) for pair in pairs]
    drift = None
    if latents is not None:
        ours, theirs = (np.asarray(one, np.float64).reshape(len(one), -1) for one in latents)
        scale = np.maximum(np.linalg.norm(ours, axis=1), 1e-12)
        drift = float(np.mean(np.linalg.norm(theirs - ours, axis=1) / scale))
    score = base = gain = None
    if correct is not None:
        base, score = (float(np.mean(one)) for one in correct)
        gain = paired_score_gain(*correct)
    return PictureFidelity(
        len(ratios), float(np.mean(ratios)), min(ratios), float(np.mean(alike)), drift, score, base, gain, files
    )


def paired_score_gain(before: Sequence[bool], after: Sequence[bool]) -> tuple[float, float, float]:
    """Mean of the paired difference of two scores with its 95 % interval (normal approximation).

    >>> paired_score_gain([True, False], [True, False])
    (0.0, 0.0, 0.0)
    """
    change = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    mean = float(change.mean())
    reach = _Z95 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 1.0
    return mean, mean - reach, mean + reach


def find_violation(trial: Trial, bounds: Bounds) -> str:
    """The first bound that the trial misses, in words; empty where it keeps them all.

    A bound on something that was not measured of this trial is kept, but a number that is not finite never is.
    """
    if trial.candidate.is_batch_dependent:
        return BATCH_DEPENDENT
    for label, one in trial.fidelity.items():
        if one.nonfinite:
            return f"{one.nonfinite} values at {label} are NaN or infinite; keep more of it in f32"
        if bounds.max_mae is not None and not one.mae <= bounds.max_mae:
            return f"a mean absolute error of {one.mae:.3g} at {label} is above the {bounds.max_mae:.3g} allowed"
    rungs: Mapping[str, tuple[float | None, float | None]] = {
        "SQNR of {:.1f} dB is below the bound of {:.1f} dB": (
            trial.worst_fidelity.sqnr if trial.worst_fidelity else None,
            bounds.min_sqnr,
        ),
        **_picture_limits(trial.pictures, bounds),
    }
    for told, (value, least) in rungs.items():
        if value is not None and least is not None and not value >= least:
            return told.format(value, least)
    if bounds.max_memory is not None and trial.peak_bytes is not None and trial.peak_bytes > bounds.max_memory:
        gib = 2**30
        return f"peak memory of {trial.peak_bytes / gib:.2f} GiB is above the {bounds.max_memory / gib:.2f} GiB allowed"
    return ""


def judge_trial(trial: Trial, bounds: Bounds) -> Trial:
    """The measured trial with its verdict.

    What was not looked at cannot be accepted: networks whose pictures were not compared, and ways to walk with a score
    over few pictures, which can reject them. The plain loops are there to be compared with: no bound concerns them.
    """
    if trial.candidate.recipe == "baseline":
        return trial
    pictures, drop = trial.pictures, bounds.max_score_drop
    is_sure = pictures is None or pictures.score is None or pictures.count >= FULL_PICTURES
    if not is_sure:
        if not trial.candidate.options:  # the pipeline's own walk, whose networks were judged one by one
            drop = None
        elif drop is not None and pictures and pictures.count <= SCREENING_PICTURES:
            drop += _SCREENING_SLACK
        bounds = replace(bounds, max_score_drop=drop, min_score=None)
    if reason := find_violation(trial, bounds):
        return replace(trial, status="rejected", reason=reason)
    if _needs_pictures(trial, bounds):
        reason = "its pictures were not compared, because it missed an earlier bound; run the sweep again"
        return replace(trial, status="skipped", reason=reason)
    if is_sure or not trial.candidate.options:
        return replace(trial, status="accepted", reason="")
    assert pictures is not None
    reason = f"right on {pictures.count} pictures, and not looked at on {FULL_PICTURES}: another was tried first, or time ended"
    return replace(trial, status="skipped", reason=reason)


def is_visually_exact(trial: Trial) -> bool:
    """Whether no picture can show the difference: the next rung is climbed only where this one leaves a doubt."""
    return trial.worst_fidelity is not None and trial.worst_fidelity.sqnr >= EXACT_SQNR


def _needs_pictures(trial: Trial, bounds: Bounds) -> bool:
    asked = bounds.min_psnr is not None or bounds.min_ssim is not None
    seen = trial.pictures is not None or is_visually_exact(trial)
    return asked and not seen and trial.candidate.component not in (NETWORK, PIPELINE, VAE_ENCODER)


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
