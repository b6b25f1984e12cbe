"""Sensitivity of the oracle to single faults: `python -m benchmarks.oracle` writes results/oracle.json.

Each row applies one fault to 500 random scenes of two figures and scores them against their full captions. An exact
oracle lowers only the score of the changed attribute; blur and noise lower the strict score long before the others.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from scipy import ndimage

from benchmarks.record import write_results
from stillhouse.core import Picture
from stillhouse.shapes.caption import describe
from stillhouse.shapes.oracle import ATTRIBUTES, score_picture
from stillhouse.shapes.scene import PALETTE, SHAPES, Figure, Scene, render_scene, sample_scene

SCENES = 500
CLEAN_SCENES = 2000
SCORES = ("all_correct", "strict", *ATTRIBUTES)


def main() -> None:
    """Score every fault and write the results."""
    rows = {"nothing (2,000 truths)": _mean_scores(_clean_pairs)}
    rows |= {name: _mean_scores(_corrupted_pairs(fault)) for name, fault in _SCENE_FAULTS.items()}
    rows |= {
        name: _mean_scores(_corrupted_pairs(lambda scene, rng: scene, fault)) for name, fault in _PIXEL_FAULTS.items()
    }
    write_results("oracle", {"scenes": SCENES, "truths": CLEAN_SCENES, "rows": rows})


def _mean_scores(pairs: "_PairFactory") -> dict[str, float]:
    scores = [score_picture(picture, describe(scene)) for picture, scene in pairs()]
    return {name: float(np.mean([float(getattr(score, name)) for score in scores])) for name in SCORES}


def _clean_pairs() -> list[tuple[Picture, Scene]]:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(CLEAN_SCENES)]
    return [(render_scene(scene), scene) for scene in scenes]


def _corrupted_pairs(
    scene_fault: Callable[[Scene, np.random.Generator], Scene],
    pixel_fault: Callable[[Picture, np.random.Generator], Picture] = lambda picture, rng: picture,
) -> "_PairFactory":
    def pairs() -> list[tuple[Picture, Scene]]:
        rng = np.random.default_rng(1)
        scenes = [sample_scene(rng, 2) for _ in range(SCENES)]
        return [(pixel_fault(render_scene(scene_fault(scene, rng)), rng), scene) for scene in scenes]

    return pairs


def _pick_other(options: tuple[str, ...], excluded: set[str], rng: np.random.Generator) -> str:
    allowed = [option for option in options if option not in excluded]
    return allowed[int(rng.integers(len(allowed)))]


def _colours(scene: Scene) -> set[str]:
    return {scene.background, *(figure.colour for figure in scene.figures)}


def _wrong_shape(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.figures
    return replace(scene, figures=(replace(first, shape=_pick_other(SHAPES, {first.shape, second.shape}, rng)), second))


def _wrong_colour(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.figures
    return replace(scene, figures=(replace(first, colour=_pick_other(tuple(PALETTE), _colours(scene), rng)), second))


def _wrong_size(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.figures
    radius = 12.5 if first.size == "small" else 7.5
    return replace(scene, figures=(replace(first, radius=radius), second))


def _wrong_background(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, background=_pick_other(tuple(PALETTE), _colours(scene), rng))


def _swapped_positions(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.figures
    moved = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
    return replace(scene, figures=moved)


def _missing(scene: Scene, rng: np.random.Generator) -> Scene:
    return replace(scene, figures=scene.figures[:1])


def _extra(scene: Scene, rng: np.random.Generator) -> Scene:
    corner = (8.0, 8.0) if min(figure.x + figure.y for figure in scene.figures) > 45 else (56.0, 8.0)
    third = Figure("circle", _pick_other(tuple(PALETTE), _colours(scene), rng), "small", *corner, 6.0)
    return replace(scene, figures=(*scene.figures, third))


def _blur(deviation: float) -> Callable[[Picture, np.random.Generator], Picture]:
    return lambda picture, rng: ndimage.gaussian_filter(picture, (deviation, deviation, 0))


def _noise(deviation: float) -> Callable[[Picture, np.random.Generator], Picture]:
    return lambda picture, rng: np.clip(picture + rng.normal(0, deviation, picture.shape), 0, 255).astype(np.uint8)


_PairFactory = Callable[[], list[tuple[Picture, Scene]]]
_SCENE_FAULTS: Mapping[str, Callable[[Scene, np.random.Generator], Scene]] = {
    "one shape wrong": _wrong_shape,
    "one colour wrong": _wrong_colour,
    "one size wrong": _wrong_size,
    "background wrong": _wrong_background,
    "figures swapped": _swapped_positions,
    "one figure missing": _missing,
    "one figure too many": _extra,
}
_PIXEL_FAULTS: Mapping[str, Callable[[Picture, np.random.Generator], Picture]] = {
    **{f"blur, sigma {deviation} px": _blur(deviation) for deviation in (0.5, 1.0, 2.0)},
    **{f"noise, sigma {deviation} of 255": _noise(deviation) for deviation in (5, 15, 30)},
}

if __name__ == "__main__":
    main()
