"""Compare the pictures of the current tree with the pictures of another commit, bit for bit.

    python -m benchmarks.yardstick [--against REVISION] [--only GROUP...] [--fresh] [--all]

Both trees generate the same pictures on this machine, on onnxruntime in f32 with one thread: the embedded model and its
students, and tiny checkpoints of Stable Diffusion 1.x, 2.x, 2 inpainting and XL, which each tree imports itself.
Hashes of latents after every evaluation and of pixels are compared. The exit status is 1 if a hash differs or a
picture is missing in a tree, and 2 if the trees cannot be compared.

To add a picture, see `cases`; to follow a renaming, see `names`.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

from benchmarks.yardstick.cases import groups
from benchmarks.yardstick.compare import Compared, compare, is_whole
from benchmarks.yardstick.trees import Failed, Tree, baseline_tree, current_tree

BASELINE = "2859d1f"
NAMED = 20
"""Largest number of cases that are named of a group, without --all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, compare and print; return the exit status."""
    options = _parser().parse_args(arguments)
    chosen = options.only or [group.name for group in groups()]
    try:
        before, now = baseline_tree(options.against), current_tree()
        _generate(before, now, chosen, fresh=options.fresh)
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    compared = {group: compare(before.read(group), now.read(group)) for group in chosen}
    print_table(compared, before.name, None if options.all else NAMED)
    return int(any(one.different or one.missing for one in compared.values()))


def print_table(compared: Mapping[str, Compared], baseline: str, named: int | None) -> None:
    """Print a row for each group and one for all, then the cases that are not equal."""
    print(f"{'against ' + baseline:18}{'cases':>7}{'equal':>7}{'different':>11}{'missing':>9}")
    rows = {name: (one.cases, len(one.equal), len(one.different), len(one.missing)) for name, one in compared.items()}
    totals = (sum(row[column] for row in rows.values()) for column in range(4))
    for name, (cases, equal, different, missing) in {**rows, "all": tuple(totals)}.items():
        print(f"{name:18}{cases:7}{equal:7}{different:11}{missing:9}")
    for group, one in compared.items():
        for what, cases_by_name in (("different", one.different), ("missing", one.missing)):
            listed = list(cases_by_name.items())
            for name, text in listed[:named]:
                print(f"{what}: {group} {name}: {text}")
            if rest := len(listed) - len(listed[:named]):
                print(f"{what}: {group} and {rest} more, see --all")


def _generate(before: Tree, now: Tree, chosen: Sequence[str], *, fresh: bool) -> None:
    """Generate the groups of the baseline that have no stored result, and all groups of the current tree."""
    lacking = [group for group in chosen if fresh or not is_whole(before.read(group))]
    for tree, missing in ((before, lacking), (now, chosen)):
        seconds = _seconds((before, now), chosen)
        tree.delete(missing)
        if missing:
            tree.generate(missing, seconds)


def _seconds(trees: Sequence[Tree], chosen: Sequence[str]) -> dict[str, float]:
    """Return the seconds that each group took when it was generated last."""
    return {group: result.seconds for tree in trees for group in chosen if (result := tree.read(group))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.yardstick", description=(__doc__ or "").partition("\n")[0])
    names = [group.name for group in groups()]
    parser.add_argument("--against", default=BASELINE, metavar="REVISION", help="the other tree (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="GROUP", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--fresh", action="store_true", help="generate the baseline again, although its results are stored"
    )
    parser.add_argument("--all", action="store_true", help=f"name all cases that differ, not {NAMED} of a group")
    return parser


if __name__ == "__main__":
    sys.exit(main())
