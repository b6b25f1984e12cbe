"""Whether the current tree draws what another commit draws, bit for bit.

    python -m benchmarks.yardstick [--against REVISION] [--only GROUP...] [--fresh] [--all]

Both trees draw the same pictures on this machine, on onnxruntime in f32 with one thread: the embedded model and its
students, and tiny checkpoints of Stable Diffusion 1.x, 2.x, 2 inpainting and XL, which each tree imports itself.
Hashes of latents after every evaluation and of pixels are compared. It ends with status 1 where any differ, or where a
picture is missing on either side, and with status 2 where there is nothing to compare with.

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
"""So many cases of a group are named, unless all are asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, compare and print; returns the exit status."""
    asked = _parser().parse_args(arguments)
    chosen = asked.only or [group.name for group in groups()]
    try:
        before, now = baseline_tree(asked.against), current_tree()
        _draw(before, now, chosen, fresh=asked.fresh)
    except Failed as error:
        print(error, file=sys.stderr)
        return 2
    compared = {group: compare(before.read(group), now.read(group)) for group in chosen}
    print_table(compared, before.name, None if asked.all else NAMED)
    return int(any(one.different or one.missing for one in compared.values()))


def print_table(compared: Mapping[str, Compared], baseline: str, named: int | None) -> None:
    """Print a row for each group and one for all, then the cases that are not equal."""
    print(f"{'against ' + baseline:18}{'cases':>7}{'equal':>7}{'different':>11}{'missing':>9}")
    rows = {name: (one.cases, len(one.equal), len(one.different), len(one.missing)) for name, one in compared.items()}
    totals = (sum(row[column] for row in rows.values()) for column in range(4))
    for name, (cases, equal, different, missing) in {**rows, "all": tuple(totals)}.items():
        print(f"{name:18}{cases:7}{equal:7}{different:11}{missing:9}")
    for group, one in compared.items():
        for what, found in (("different", one.different), ("missing", one.missing)):
            listed = list(found.items())
            for name, told in listed[:named]:
                print(f"{what}: {group} {name}: {told}")
            if rest := len(listed) - len(listed[:named]):
                print(f"{what}: {group} and {rest} more, see --all")


def _draw(before: Tree, now: Tree, chosen: Sequence[str], *, fresh: bool) -> None:
    """Draw what is not kept of the baseline, and all of the current tree."""
    lacking = [group for group in chosen if fresh or not is_whole(before.read(group))]
    for tree, drawn in ((before, lacking), (now, chosen)):
        seconds = _seconds((before, now), chosen)
        tree.forget(drawn)
        if drawn:
            tree.draw(drawn, seconds)


def _seconds(trees: Sequence[Tree], chosen: Sequence[str]) -> dict[str, float]:
    """What each group took when it was drawn last."""
    return {group: drawn.seconds for tree in trees for group in chosen if (drawn := tree.read(group))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.yardstick", description=(__doc__ or "").partition("\n")[0])
    known = [group.name for group in groups()]
    parser.add_argument("--against", default=BASELINE, metavar="REVISION", help="the other tree (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=known, metavar="GROUP", help=f"of {', '.join(known)}")
    parser.add_argument("--fresh", action="store_true", help="draw the baseline again, though it is kept")
    parser.add_argument("--all", action="store_true", help=f"name all cases that differ, not {NAMED} of a group")
    return parser


if __name__ == "__main__":
    sys.exit(main())
