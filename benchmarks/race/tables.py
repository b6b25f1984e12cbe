"""Tables of the race."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.race.subjects import CACHING, DEFAULT_PEER, EXACT, IMPORTED, REFERENCE, STEPS, SUBJECTS
from stillhouse.accelerate.views.formatting import format_psnr, format_sqnr

SUMMARY_STEPS = ("3", "20")


def race_table(results: Mapping[str, Any]) -> str:
    """Return seconds of evaluations, decoding and whole pictures, and what the accelerated pipeline gains."""
    rows = results["rows"]
    timed = {name: row for name, row in rows.items() if "pictures" in row}
    head = ["512x512, guidance, DDIM", "ran in", "an evaluation", "decoding", *(f"{steps} steps" for steps in STEPS)]
    head += ["load, first picture", "peak memory", "SQNR", "PSNR", f"{STEPS[-1]} steps: accelerated is faster by"]
    lines = [
        [
            name,
            row["precision"],
            f"{_evaluation(name, row):.2f} s",
            _seconds(row["decoding"]),
            *(_seconds(row["pictures"].get(str(steps), {}).get("seconds")) for steps in STEPS),
            f"{row['load_seconds']:.0f} s, {row['first_picture_seconds']:.0f} s",
            f"{row['peak_bytes'] / 2**30:.1f} GiB",
            _decibels(row.get("sqnr"), format_sqnr),
            _decibels(row.get("psnr"), format_psnr),
            _ratio(row["pictures"].get(str(STEPS[-1]))),
        ]
        for name, row in timed.items()
    ]
    lines.append(_reference_line(list(timed.values())))
    missing = "".join(f"{name}: {row['reason']}\n" for name, row in rows.items() if "reason" in row)
    untimed = "; ".join(name for name in SUBJECTS if name not in rows and name != REFERENCE)
    notes = (f"\nNot measured:\n\n{missing}" if missing else "") + (f"\nNot timed yet: {untimed}.\n" if untimed else "")
    return markdown_table(head, lines) + notes


def summary_table(results: Mapping[str, Any]) -> str:
    """Return seconds of pictures of 3 and 20 steps: the reference, the best peer, what users get, and Stillhouse."""
    names = {EXACT, DEFAULT_PEER, best_peer(results, STEPS[-1]), IMPORTED, CACHING}
    shown = [(name, row) for name, row in results["rows"].items() if name in names and "pictures" in row]
    lines = [
        [
            name,
            row["precision"],
            *(_seconds(row["pictures"].get(steps, {}).get("seconds")) for steps in SUMMARY_STEPS),
            *(_ratio(row["pictures"].get(steps)) for steps in SUMMARY_STEPS),
        ]
        for name, row in shown
    ]
    reference = _reference_line([row for _, row in shown])
    places = [4 + STEPS.index(int(steps)) for steps in SUMMARY_STEPS]
    lines.append([*reference[:2], *(reference[place] for place in places), "", ""])
    steps = [f"{number} steps" for number in SUMMARY_STEPS]
    head = ["a picture of Stable Diffusion 1.5's sizes, 512x512, guidance", "ran in", *steps]
    return markdown_table([*head, *(f"{number}: accelerated is faster by" for number in steps)], lines)


def _reference_line(timed: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the row of the accelerated pipeline: the medians over the turns with all subjects."""
    reference = timed[-1]["reference"]

    def middle(name: str) -> float:
        return float(median(row[name] for row in timed))

    pictures = [
        median(row["pictures"][str(steps)]["reference_seconds"] for row in timed if str(steps) in row["pictures"])
        for steps in STEPS
    ]
    return [
        f"**{REFERENCE}**",
        reference["precision"],
        f"{middle('reference_evaluation'):.2f} s",
        _seconds(middle("reference_decoding")),
        *map(_seconds, pictures),
        f"{middle('reference_load_seconds'):.0f} s, {middle('reference_first_picture_seconds'):.0f} s",
        f"{max(row['reference_peak_bytes'] for row in timed) / 2**30:.1f} GiB",
        _decibels(reference.get("sqnr"), format_sqnr),
        _decibels(reference.get("psnr"), format_psnr),
        "",
    ]


def best_peer(results: Mapping[str, Any], steps: int) -> str:
    """Return the name of the peer whose picture of so many steps takes the least time, relative to the reference.

    Peers that estimate steps from those before are left out.
    """
    peers: dict[str, float] = {
        name: row["pictures"][str(steps)]["ratio"]["value"]
        for name, row in results["rows"].items()
        if SUBJECTS[name].is_peer and not SUBJECTS[name].has_cache and str(steps) in row.get("pictures", {})
    }
    return min(peers, key=peers.__getitem__)


def _evaluation(name: str, row: Mapping[str, Any]) -> float:
    """Return the median seconds of an evaluation; with a cache, where evaluations differ, a long picture's mean."""
    if not SUBJECTS[name].has_cache:
        return float(row["evaluation"])
    return float((row["pictures"][str(STEPS[-1])]["seconds"] - (row["decoding"] or 0.0)) / STEPS[-1])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"


def _decibels(value: float | None, write: Callable[[float], str]) -> str:
    text = "" if value is None else write(value)
    return f"{text} dB" if text[:1].isdigit() else text


def _ratio(picture: Mapping[str, Any] | None) -> str:
    """Return the ratio with its interval; without one where a single picture was made; "slower by" below 1.

    A ratio whose interval contains 1 shows neither, and is not set in bold.
    """
    if picture is None:
        return ""
    value, low, high = (picture["ratio"][name] for name in ("value", "low", "high"))
    if low < 1 < high:
        return f"{value:.2f}x ({low:.2f} to {high:.2f})"
    if value < 1:
        value, low, high = 1 / value, 1 / high, 1 / low
    interval = f" ({low:.2f} to {high:.2f})" if picture["rounds"] > 1 else " (one picture)"
    return f"{'slower by ' if picture['ratio']['value'] < 1 else ''}**{value:.2f}x**{interval}"
