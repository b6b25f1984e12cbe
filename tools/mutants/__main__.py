"""Make seeded mutants of the source and run the tests on each: `python -m tools.mutants`.

A mutant is the source with one small fault. A fault that no test finds shows what the tests do not check. Forty
mutants are drawn, ten of each area of `areas.AREAS`; a mutant that survives the quick tests of its area is run with
the wider ones before it counts as survived. Before and after a change of the tests:

    python -m tools.mutants -o before.json
    python -m tools.mutants --tests ../changed --compare before.json
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tools.mutants.areas import AREAS, Area, DrawnMutant, draw_mutants, locate_mutants
from tools.mutants.sites import MutantKey
from tools.mutants.trials import BaselineError, Bench, Run, Stage, open_bench

ROOT = Path(__file__).parents[2]
SEED, COUNT = "1", 40

Entry: TypeAlias = Mapping[str, Any]
"""A mutant and what the tests said of it, as in the JSON result."""


def main(argv: Sequence[str] | None = None, root: Path = ROOT, areas: Sequence[Area] = AREAS) -> int:
    """Print whether the tests kill each mutant.

    Args:
        argv: command line arguments; None reads those of the process.
        root: directory that holds `src`.
        areas: where mutants are drawn.

    Returns:
        1 if a mutant that was killed in the compared result is not killed now, 2 if there are no tests, they fail on
        the original source, or a number is unknown, otherwise 0.
    """
    arguments = _read_arguments(argv, root)
    source, earlier = root / "src", _read_earlier(arguments)
    seed = earlier["seed"] if earlier else arguments.seed
    numbered: dict[int, DrawnMutant]
    if earlier:
        located = locate_mutants(source, areas)
        keys = {entry["number"]: _entry_key(entry) for entry in earlier["mutants"]}
        numbered = {number: located[key] for number, key in keys.items() if key in located}
    else:
        numbered = dict(enumerate(draw_mutants(source, areas, arguments.count, seed), 1))
    if arguments.only:
        known = {entry["number"] for entry in earlier["mutants"]} if earlier else set(numbered)
        if unknown := set(arguments.only) - known:
            print(f"there is no mutant {min(unknown)}; allowed: {min(known)} to {max(known)}", file=sys.stderr)
            return 2
        numbered = {number: numbered[number] for number in arguments.only if number in numbered}
    head = {"commit": _commit(root), "tests": _commit(arguments.tests), "seed": seed}

    def write(entries: Sequence[Entry]) -> None:
        if arguments.output:
            ordered = sorted(entries, key=lambda entry: entry["number"])
            text = json.dumps({**head, "mutants": ordered}, indent=1)
            arguments.output.write_text(f"{text}\n", encoding="utf-8")

    try:
        with open_bench(source, arguments.tests.resolve()) as bench:
            entries = _judge_all(numbered, bench, write)
    except BaselineError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{sum(entry['killed'] for entry in entries)} of {len(entries)} mutants killed")
    return _report_lost(earlier["mutants"], entries) if earlier else 0


def _read_earlier(arguments: Namespace) -> dict[str, Any] | None:
    """Return the result to compare with, without the mutants that are not selected; None where nothing is compared."""
    if arguments.compare is None:
        return None
    earlier: dict[str, Any] = json.loads(arguments.compare.read_text(encoding="utf-8"))
    selected = [entry for entry in earlier["mutants"] if not arguments.only or entry["number"] in arguments.only]
    return {**earlier, "mutants": selected}


def _report_lost(before: Sequence[Entry], after: Sequence[Entry]) -> int:
    """Print the mutants that were killed before and are not now. Return 1 if there are any, otherwise 0."""
    is_killed = {_entry_key(entry): entry["killed"] for entry in after}
    lost = [entry for entry in before if entry["killed"] and not is_killed.get(_entry_key(entry))]
    for entry in lost:
        reason = "no longer killed" if _entry_key(entry) in is_killed else "not in the source"
        print(f"{reason}: {_describe(entry)}", file=sys.stderr)
    return 1 if lost else 0


def _read_arguments(argv: Sequence[str] | None, root: Path) -> Namespace:
    parser = ArgumentParser(prog="python -m tools.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", default=SEED, metavar="TEXT", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=COUNT, metavar="N", help="number of mutants; default: %(default)s")
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="NUMBER", help="run only these, numbered from 1, in this order"
    )
    parser.add_argument(
        "--tests", type=Path, default=root, metavar="DIR", help="repository whose tests run; default: this"
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="FILE",
        help="run the mutants of an earlier result; exit 1 if one that was killed is not",
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the result as JSON")
    return parser.parse_args(argv)


def _judge_all(
    numbered: Mapping[int, DrawnMutant], bench: Bench, write: Callable[[Sequence[Entry]], None]
) -> list[Entry]:
    """Run the quick tests on each mutant, then the wider ones on those that survive; print what the tests say.

    Args:
        numbered: mutants by number.
        bench: runs the tests.
        write: called with all entries after each run.
    """
    entries: dict[int, Entry] = {}
    stages: tuple[Stage, ...] = ("quick", "wider")
    for stage in stages:
        left = [number for number in numbered if number not in entries or not entries[number]["killed"]]
        began = time.monotonic()
        for done, number in enumerate(left):
            minutes = (time.monotonic() - began) / 60 / done * (len(left) - done) if done else None
            estimate = "" if minutes is None else f", about {minutes:.0f} min left"
            print(f"{stage} tests, mutant {done + 1} of {len(left)}{estimate}", file=sys.stderr, flush=True)
            run = bench.judge(numbered[number], stage)
            entries[number] = _entry(number, numbered[number], stage, run, entries.get(number))
            if stage == "wider" or entries[number]["killed"]:
                print(f"{number:3} {entries[number]['verdict']:8} {_describe(entries[number])}", flush=True)
            write(list(entries.values()))
    return list(entries.values())


def _entry(number: int, drawn: DrawnMutant, stage: Stage, run: Run, before: Entry | None) -> Entry:
    """Return what a run says of a mutant.

    Args:
        number: number of the mutant.
        drawn: the mutant with its area.
        stage: which tests ran.
        run: the run.
        before: entry of the stage before.
    """
    mutant = drawn.mutant
    return {
        "number": number,
        "area": drawn.area.name,
        "file": mutant.file,
        "line": mutant.line,
        "function": mutant.function,
        "operator": mutant.operator,
        "before": mutant.before,
        "after": mutant.after,
        "occurrence": mutant.occurrence,
        "killed": run.verdict != "survived",
        "verdict": run.verdict,
        "stage": stage,
        "failure": run.failure,
        "seconds": round(run.seconds + (before["seconds"] if before else 0.0), 1),
    }


def _entry_key(entry: Entry) -> MutantKey:
    """Return `Mutant.key` of an entry of a result."""
    names = ("file", "function", "operator", "before", "after")
    file, function, operator, before, after = (str(entry[name]) for name in names)
    return file, function, operator, before, after, int(entry["occurrence"])


def _describe(entry: Entry) -> str:
    before, after = (" ".join(str(entry[name]).split()) for name in ("before", "after"))
    place = f"{entry['file']}:{entry['line']} {entry['function']}".rstrip()
    return f"{place}: {entry['operator']}: {before!r} -> {after!r}  {entry['failure']}".rstrip()


def _commit(root: Path) -> str:
    """Return the hash of a repository's last commit, with `+` where files differ from it; empty without git."""
    try:
        commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        head, changes = (
            subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{head}+" if changes else head


if __name__ == "__main__":
    sys.exit(main())
