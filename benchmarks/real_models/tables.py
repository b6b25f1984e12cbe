"""Tables of `benchmarks.real_models`, from results/real_models.json."""

from collections.abc import Mapping
from typing import Any

from benchmarks.grid import markdown_table
from benchmarks.real_models.task_error import Measure

_EXACT_SQNR = 900.0
"""SQNR in dB from which outputs were equal bit by bit."""


def models_table(results: Mapping[str, Any]) -> str:
    """Return the table of where the networks come from, the table of results, and a line that counts verdicts."""
    models = results["models"]
    origins = markdown_table(
        ["network", "what it does", "package", "licence", "the original, on held-out inputs"],
        [
            [_cell(text) for text in (name, model["kind"], model["package"], model["licence"], model["findings"])]
            for name, model in models.items()
        ],
    )
    measured = markdown_table(
        ["network", "chosen", "claimed", "error of the task (and its limit)", "against `InferenceSession`", "verdict"],
        [[_cell(text) for text in _result(name, model)] for name, model in models.items()],
    )
    return f"{measured}\n{summary(models, results['budget'])}\n\n{origins}"


def _result(name: str, model: Mapping[str, Any]) -> list[str]:
    claim = model["claim"]
    if not claim:
        return [name, "", "", "", "", verdict(model)]
    errors = ", ".join(f"{one['name']} {one['value']:.2g} ({one['limit']:g})" for one in model["task"])
    ratio = f"**{_interval(model['ratio'])}**" if model["ratio"] else ""
    return [name, claim["chosen"], _claimed(claim), errors, ratio, verdict(model)]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _claimed(claim: Mapping[str, Any]) -> str:
    sqnr, ratio = claim["sqnr"], claim["ratio"]
    error = "" if sqnr is None else "exact" if sqnr >= _EXACT_SQNR else f"{sqnr:.0f} dB"
    return ", ".join(text for text in (error, _interval(ratio) if ratio else "") if text)


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


def is_wrong(model: Mapping[str, Any]) -> bool:
    """Return whether an error of the task is above its limit."""
    return any(Measure(**measure).is_wrong for measure in model["task"])


def lost_shapes(model: Mapping[str, Any]) -> list[str]:
    """Return the shapes that the file allows and that the accelerated network refuses or gets wrong."""
    return [shape for shape, reason in model["shapes"].items() if reason]


def is_slower(model: Mapping[str, Any]) -> bool:
    """Return whether the whole interval of the speed ratio is below 1."""
    return bool(model["ratio"]) and model["ratio"]["high"] < 1


def gains(model: Mapping[str, Any]) -> bool:
    """Return whether the whole interval of the speed ratio is above 1, and the network is right by its task."""
    return bool(model["ratio"]) and model["ratio"]["low"] > 1 and not is_wrong(model)


def overclaims(model: Mapping[str, Any]) -> bool:
    """Return whether the report's speed-up is above what was measured, by both intervals."""
    claim, measured = model["claim"] and model["claim"]["ratio"], model["ratio"]
    return bool(claim and measured) and claim["low"] > measured["high"]


def verdict(model: Mapping[str, Any]) -> str:
    """Return what became of a network, the worst first."""
    if model["failure"]:
        return f"failed: {model['failure'][:200]}"
    faults = ["wrong by its task"] * is_wrong(model) + ["slower"] * is_slower(model)
    faults += [f"lost: {', '.join(lost_shapes(model))}"] if lost_shapes(model) else []
    return "; ".join(faults) or ("gains" if gains(model) else "equal")


def summary(models: Mapping[str, Mapping[str, Any]], budget: str) -> str:
    """Return one sentence that counts the verdicts."""
    counts = {
        "gain": sum(map(gains, models.values())),
        "are wrong by their task": sum(map(is_wrong, models.values())),
        "are slower": sum(map(is_slower, models.values())),
        "lose a shape that the file allows": sum(bool(lost_shapes(model)) for model in models.values()),
        "claim more speed than was measured": sum(map(overclaims, models.values())),
        "fail": sum(bool(model["failure"]) for model in models.values()),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items())
    seconds = [model["seconds"] for model in models.values()]
    return f"Of {len(models)} networks, {told}. Budget {budget} each; the longest sweep took {max(seconds):.0f} s."
