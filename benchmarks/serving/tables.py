"""Tables of `serving.json` and `serving_overhead.json` for documents and the console."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.grid import markdown_table

_HEAD = (
    "requests",
    "server",
    "free: median",
    "99 %",
    "pro: median",
    "99 %",
    "in time, of free",
    "of pro",
    "in time a second",
)
_HIGH, _FULL = "78 % load", "95 % load"


def serving_table(results: Mapping[str, Any]) -> str:
    """Return the comparison for a document."""
    settings = results["settings"]
    tiers = settings["shares"]
    each = ", ".join(f"{100 * tiers[tier]:.0f} % x {settings['steps'][tier]} steps" for tier in tiers)
    isolated = [run["isolated_seconds"] for run in results["runs"] if "isolated_seconds" in run]
    spans = ((tier, [1000 * seconds[tier] for seconds in isolated]) for tier in tiers)
    seconds = ", ".join(f"{min(taken):.0f} to {max(taken):.0f} ms ({tier})" for tier, taken in spans)
    turns = f"{settings['parts']} times {settings['seconds']:g} s of requests in turns, the same for every server"
    alone = f"Before each trace it was measured what a picture takes alone, {seconds}, which gives load and promise"
    descriptions = f"{each}; {turns}. {alone}: in time is what was answered within {settings['slo']:g} times that."
    refused = "Stillhouse takes everything here, as the others do; as it comes, it refuses what would be late."
    verdicts = "\n".join(f"- {line}" for line in _verdicts(results))
    return f"{markdown_table(_HEAD, _rows(results))}\n{descriptions} {refused}\n\n{verdicts}\n"


def overhead_table(results: Mapping[str, Any]) -> str:
    """Return the overhead for a document."""
    served = [
        [
            f"{row['steps']} steps",
            *(f"{1000 * row[way]['median']:.1f} ms" for way in ("offline", "served")),
            "**{value:.1f} ms** ({low:.1f} to {high:.1f})".format(
                **{name: 1000 * value for name, value in row["difference"].items()}
            ),
        ]
        for row in results["served"].values()
    ]
    health = [
        [row["description"], *(f"{1000 * row[name]:.1f} ms" for name in ("p50", "p99", "max"))]
        for row in results["blocking"]
    ]
    encoded = [
        [f"{row['size']}x{row['size']}", *(f"{1000 * row[name]:.1f} ms" for name in ("png", "on_loop", "in_thread"))]
        for row in results["encoding"]
    ]
    read = results["validation"]
    ratio = "{value:.1f}x ({low:.1f} to {high:.1f})".format(**read["ratio"])
    times = f"{read['msgspec']:.1f} us by msgspec, in {read['pydantic']:.1f} us by pydantic, {ratio}"
    bar = 1000 * results["bar"]
    verdicts = "; ".join(
        f"{row['steps']} steps: {_format_verdict(row['difference']['value'] <= results['bar'])}"
        for row in results["served"].values()
    )
    tables = (
        f"{markdown_table(('one picture of 64x64', 'offline, median', 'served, median', 'more'), served)}"
        f"\nBar: at most {bar:g} ms more. {verdicts}.\n",
        markdown_table(
            ("health requests while eight pictures of 35 steps are generated", "median", "99 %", "longest"), health
        ),
        markdown_table(("one PNG", "takes", "the loop stands still, encoded on it", "in a thread"), encoded),
    )
    return "\n".join([*tables, f"A request is read in {times}. Stillhouse encodes in the worker's process.\n"])


def console_table(results: Mapping[str, Any]) -> str:
    """Return the comparison for the console."""
    rows = [list(_HEAD), *_rows(results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def console_verdicts(results: Mapping[str, Any]) -> str:
    """Return the targets and whether they are met, for the console."""
    return "\n".join(_verdicts(results))


def _rows(results: Mapping[str, Any]) -> list[list[str]]:
    rows: list[list[str]] = []
    last = ""
    for run in results["runs"]:
        first = [run["trace"] if run["trace"] != last else "", run["description"]]
        last = run["trace"]
        if "skipped" in run:
            rows.append([*first, *["not here"] * (len(_HEAD) - len(first))])
            continue
        rows_by_class = {row["request_class"]: row for row in run["report"]["rows"]}
        times = [_seconds(rows_by_class[tier][share]) for tier in ("free", "pro") for share in ("p50", "p99")]
        kept = [f"{100 * rows_by_class[tier]['goodput']:.0f} %" for tier in ("free", "pro")]
        rows.append([*first, *times, *kept, f"{rows_by_class['all']['goodput_per_second']:.2f}"])
    return rows


def _verdicts(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the targets of the comparison with the measured values; skip targets with missing runs."""
    rows_by_class = {
        (run["trace"], run["server"]): {row["request_class"]: row for row in run["report"]["rows"]}
        for run in results["runs"]
        if "report" in run
    }
    descriptions = {run["server"]: run["description"] for run in results["runs"]}

    def compared(trace: str, tier: str, other: str, most: float) -> Iterator[str]:
        ours, theirs = rows_by_class.get((trace, "slack")), rows_by_class.get((trace, other))
        if ours and theirs and ours[tier]["p99"] and theirs[tier]["p99"]:
            share = ours[tier]["p99"] / theirs[tier]["p99"]
            times = f"is {share:.2g} times that of: {descriptions[other]} (bar: at most {most:g})"
            yield f"At {trace} Stillhouse's 99 % of {tier} {times}: {_format_verdict(share <= most)}"

    for other, most in (("fastapi-async", 0.1), ("fastapi-def", 0.1), ("triton", 0.2), ("triton-tiers", 0.2)):
        yield from compared(_HIGH, "free", other, most)
    for trace in (_HIGH, _FULL):
        yield from compared(trace, "pro", "fcfs", 1.5)
    goodput = {
        server: rows["all"]["goodput_per_second"] for (trace, server), rows in rows_by_class.items() if trace == _FULL
    }
    if "slack" in goodput and len(goodput) > 1:
        best = max(goodput, key=lambda name: goodput[name])
        values = "; ".join(f"{descriptions[name]}: {value:.2f}" for name, value in goodput.items())
        ours = _format_verdict(best in ("slack", "refusing"))
        yield f"At {_FULL} the most pictures in time a second are Stillhouse's ({values}): {ours}"


def _format_verdict(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"
