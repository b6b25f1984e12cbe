"""Two trees' hashes, case by case."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.yardstick.trees import Drawn

Hashes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """One group: names of the cases that are equal, and of each other case what is different or missing."""

    equal: tuple[str, ...]
    different: Mapping[str, str]
    missing: Mapping[str, str]

    @property
    def cases(self) -> int:
        """How many cases either tree has."""
        return len(self.equal) + len(self.different) + len(self.missing)


def compare(before: Drawn | None, now: Drawn | None) -> Compared:
    """Compare what two trees drew of one group; None counts as missing, and so does a case with an error.

    Of a group that could not be opened nothing but that is told.
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
    """Say where two pictures part first.

    >>> one = {"begun": "a", "evaluations": ["b", "c"], "latents": "d", "pixels": "e"}
    >>> where(one, {**one, "evaluations": ["b", "x"]}), where(one, {**one, "pixels": "x"})
    ('from evaluation 2 of 2', 'the pixels only')
    """
    if old["begun"] != new["begun"]:
        return "from the beginning"
    walked, walks = old["evaluations"], new["evaluations"]
    if len(walked) != len(walks):
        return f"{len(walked)} evaluations, now {len(walks)}"
    for place, (one, other) in enumerate(zip(walked, walks, strict=True), 1):
        if one != other:
            return f"from evaluation {place} of {len(walks)}"
    return "the last latents" if old["latents"] != new["latents"] else "the pixels only"


def is_whole(drawn: Drawn | None) -> bool:
    """Whether a group was drawn, with no error in it."""
    return drawn is not None and not drawn.error and not any("error" in case for case in drawn.cases.values())


def _lack(drawn: Drawn | None) -> str:
    if drawn is None:
        return "the driver ended before it"
    return drawn.error or ""


def _why(old: Hashes | None, new: Hashes | None) -> str:
    sides = (("baseline", old), ("current tree", new))
    errors = [
        f"{side}: {'nothing' if one is None else one['error']}" for side, one in sides if not one or "error" in one
    ]
    return "; ".join(errors)


def _how_much(name: str, before: Drawn, now: Drawn) -> str:
    """The largest difference of the last latents, beside their own largest value, and of the pixels."""
    latents, pixels = ((before.array(f"{name}:{kind}"), now.array(f"{name}:{kind}")) for kind in ("latents", "pixels"))
    if latents[0].shape != latents[1].shape or pixels[0].shape != pixels[1].shape:
        return "other sizes"
    apart = np.abs(latents[0].astype(np.float64) - latents[1]).max()
    levels = np.abs(pixels[0].astype(int) - pixels[1])
    largest, share = np.abs(latents[0]).max(), (levels > 0).mean()
    return f"latents by {apart:.1e} of {largest:.1e}, {share:.1%} of pixels by up to {levels.max()} levels"
