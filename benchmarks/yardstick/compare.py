"""Comparison of the hashes of two trees, case by case."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.yardstick.trees import GroupResult

Hashes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """One group: names of the cases that are equal, and of each other case what is different or missing."""

    equal: tuple[str, ...]
    different: Mapping[str, str]
    missing: Mapping[str, str]

    @property
    def cases(self) -> int:
        """Return the number of cases that at least one tree has."""
        return len(self.equal) + len(self.different) + len(self.missing)


def compare(before: GroupResult | None, now: GroupResult | None) -> Compared:
    """Compare the results of two trees for one group. None and a case with an error count as missing.

    A group whose pipeline could not be opened has one missing entry: the error.
    """
    missing = {f"all of {side}": _lack(one) for side, one in (("baseline", before), ("current", now)) if _lack(one)}
    if missing or before is None or now is None:
        return Compared((), {}, missing)
    equal, different = [], dict[str, str]()
    for name in {**before.cases, **now.cases}:
        old, new = before.cases.get(name), now.cases.get(name)
        if old is None or new is None or "error" in old or "error" in new:
            missing[name] = _why(old, new)
        elif old == new:
            equal.append(name)
        else:
            different[name] = f"{where(old, new)}; {_how_much(name, before, now)}"
    return Compared(tuple(equal), different, missing)


def where(old: Hashes, new: Hashes) -> str:
    """Return the first place at which two pictures differ.

    >>> one = {"begun": "a", "evaluations": ["b", "c"], "latents": "d", "pixels": "e"}
    >>> where(one, {**one, "evaluations": ["b", "x"]}), where(one, {**one, "pixels": "x"})
    ('from evaluation 2 of 2', 'the pixels only')
    """
    if old["begun"] != new["begun"]:
        return "from the beginning"
    before, now = old["evaluations"], new["evaluations"]
    if len(before) != len(now):
        return f"{len(before)} evaluations, now {len(now)}"
    for place, (one, other) in enumerate(zip(before, now, strict=True), 1):
        if one != other:
            return f"from evaluation {place} of {len(now)}"
    return "the last latents" if old["latents"] != new["latents"] else "the pixels only"


def is_whole(result: GroupResult | None) -> bool:
    """Return whether every case of a group was generated."""
    return result is not None and not result.error and not any("error" in case for case in result.cases.values())


def _lack(result: GroupResult | None) -> str:
    if result is None:
        return "the driver ended before it"
    return result.error or ""


def _why(old: Hashes | None, new: Hashes | None) -> str:
    sides = (("baseline", old), ("current tree", new))
    errors = [
        f"{side}: {'nothing' if one is None else one['error']}" for side, one in sides if not one or "error" in one
    ]
    return "; ".join(errors)


def _how_much(name: str, before: GroupResult, now: GroupResult) -> str:
    """Return the largest difference of the final latents, with the largest latent, and of the pixels."""
    latents, pixels = ((before.array(f"{name}:{kind}"), now.array(f"{name}:{kind}")) for kind in ("latents", "pixels"))
    if latents[0].shape != latents[1].shape or pixels[0].shape != pixels[1].shape:
        return "other sizes"
    apart = np.abs(latents[0].astype(np.float64) - latents[1]).max()
    levels = np.abs(pixels[0].astype(int) - pixels[1])
    largest, share = np.abs(latents[0]).max(), (levels > 0).mean()
    return f"latents by {apart:.1e} of {largest:.1e}, {share:.1%} of pixels by up to {levels.max()} levels"
