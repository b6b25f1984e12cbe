"""Pictures of the yardstick, in groups of one pipeline each. Nothing of the project is imported here.

Fields of requests have the names of the baseline; `names` translates them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROMPT = "a small red circle left of a large blue square"
OTHER = "two green triangles on a black background"
SAMPLERS = ("ddim", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""First order, ancestral, two evaluations a step, multistep, multistep with fresh noise, and with a corrector."""
MORE_SAMPLERS = ("ddpm", "euler", "lcm")
LARGEST_SEED = 2**63 - 1
KINDS = ("sd1", "sd2", "inpaint", "xl")
STUDENTS = ("shapes-3", "shapes-1")


@dataclass(frozen=True, slots=True)
class Case:
    """One picture.

    Args:
        name: within its group.
        fields: of its request, `image` and `mask` among them as arrays.
        noise: seed of a generator that draws the initial noise; None leaves that to the request's seed.
    """

    name: str
    fields: Mapping[str, Any]
    noise: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures of one pipeline.

    Args:
        name: what `--only` takes.
        source: an embedded model, or a committed checkpoint.
        way: how it is opened, see `names.WAYS`.
        alone: pictures that are generated one after the other.
        together: pictures of one batch, each of which joins it one evaluation after the one before.
        lora: whether the committed adapter is fused at the import.
    """

    name: str
    source: str
    alone: tuple[Case, ...]
    together: tuple[Case, ...] = field(default=())
    way: str = ""
    lora: bool = False


def picture(seed: int = 0, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Draw bands of colours with a bright square, uint8 [height, width, 3], in whole numbers only."""
    y, x = np.mgrid[:height, :width]
    bands = [(x * (3 + seed) + y * 2) % 256, (y * 5 + seed * 40) % 256, (x * y // 8 + seed * 90) % 256]
    image = np.stack(bands, axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (250, 20, 20)
    return image


def mask(height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    """Mark an ellipse to be repainted, uint8 [height, width], with levels on both sides of the threshold of 127."""
    y, x = np.mgrid[:height, :width]
    near = (4 * y - 2 * height) ** 2 * width**2 + (4 * x - 2 * width) ** 2 * height**2
    return np.select([near < (height * width) ** 2, near < 2 * (height * width) ** 2], [255, 128], 127).astype(np.uint8)


def text(name: str, **fields: Any) -> Case:
    """Name a picture of words alone."""
    return Case(f"text-{name}", {"prompt": PROMPT, "seed": len(name), **fields})


def img2img(name: str, **fields: Any) -> Case:
    """Name a picture that begins at another one."""
    return Case(f"img2img-{name}", {"prompt": PROMPT, "seed": len(name), "image": picture(), **fields})


def inpaint(name: str, **fields: Any) -> Case:
    """Name a picture of which a part is repainted."""
    fields = {"image": picture(1), "mask": mask(), **fields}
    return Case(f"inpaint-{name}", {"prompt": PROMPT, "seed": len(name), **fields})


def groups() -> tuple[Group, ...]:
    """List everything that is drawn, quick pipelines first."""
    return (*_checkpoints(), *_variants(), *_embedded())


def _checkpoints() -> Iterator[Group]:
    for kind in KINDS:
        if kind == "inpaint":
            alone = (*_inpainted(), *_inpainted_at(1.0))
            yield Group(kind, kind, alone, _repainted_batch())
        else:
            yield Group(kind, kind, (*_texts(), *_edits(), *_inpainted()), _batch())


def _variants() -> Iterator[Group]:
    some = (*_grids(), img2img("strength", steps=6, strength=0.6))
    yield Group("sd1-lora", "sd1", some, lora=True)
    yield Group("sd1-cut", "sd1", tuple(_cached()), _cached_batch(), "cut")
    yield Group("xl-cut", "xl", tuple(_cached()), _cached_batch(), "cut")
    yield Group("inpaint-cut", "inpaint", tuple(_cached_inpainted()), way="cut")
    yield Group("sd1-student", "sd1", tuple(_students(3, (1.0, 7.5))), _students_batch(3, 7.5), "student")
    yield Group("sd1-tiled", "sd1", tuple(_sizes()), way="tiled")
    yield Group("sd1-static", "sd1", (text("alone", steps=3),), _batch(), "static")
    for way in ("karras", "exponential", "linspace", "sample"):
        yield Group(f"sd1-{way}", "sd1", some, way=way)
    yield Group("sd1-flow", "sd1", tuple(_flows()), way="flow")


def _embedded() -> Iterator[Group]:
    yield Group("shapes", "shapes", (*_texts(), *_edits(), *_inpainted()), _batch())
    yield Group("shapes-cut", "shapes", tuple(_cached()), _cached_batch(), "cut")
    for name, steps in zip(STUDENTS, (3, 1), strict=True):
        yield Group(name, name, tuple(_students(steps, (1.0, 5.0))), _students_batch(steps, 5.0))


def _texts() -> Iterator[Case]:
    for sampler in SAMPLERS:
        for guidance in (1.0, 7.5):
            yield text(f"{sampler}-{guidance:g}", steps=_steps(sampler, 5), guidance=guidance, sampler=sampler)
    for sampler in MORE_SAMPLERS:
        yield text(sampler, steps=3, guidance=3.0, sampler=sampler)
    yield text("defaults", steps=3)
    yield text("no-words", prompt="", steps=3)
    yield text("large-seed", steps=3, seed=LARGEST_SEED)
    yield Case("text-noise", {"prompt": PROMPT, "steps": 4, "guidance": 7.5, "sampler": "heun"}, noise=3)
    yield from _guided()
    yield from _sizes()


def _guided() -> Iterator[Case]:
    usual: dict[str, Any] = {"steps": 4, "guidance": 7.5}
    yield text("negative", negative_prompt=OTHER, **usual)
    yield text("negative-unguided", negative_prompt=OTHER, steps=3, guidance=1.0)
    for sampler in ("ddim", "dpmpp_2m", "unipc"):
        yield text(f"rescaled-{sampler}", guidance_rescale=0.7, sampler=sampler, **usual)
    for sampler in ("ddim", "heun", "dpmpp_2m_sde"):
        yield text(f"interval-{sampler}", guidance_interval=(0.25, 0.75), sampler=sampler, **usual)
    for eta in (0.4, 1.0):
        yield text(f"eta-{eta:g}", eta=eta, sampler="ddim", **usual)
    everything = {"guidance_rescale": 0.5, "guidance_interval": (0.0, 0.8), "eta": 0.3, "negative_prompt": OTHER}
    yield text("everything", **usual, **everything)


def _sizes() -> Iterator[Case]:
    yield text("wide", steps=3, guidance=3.0, width=96)
    yield text("high", steps=3, guidance=3.0, width=32, height=80)
    yield img2img("high", image=picture(2, 96, 64), steps=4, guidance=3.0, strength=0.75)
    yield inpaint("wide", image=picture(2, 48, 96), mask=mask(48, 96), steps=4, guidance=3.0)


def _edits() -> Iterator[Case]:
    yield img2img("defaults", steps=4)
    for sampler in SAMPLERS:
        yield img2img(f"{sampler}-7.5", steps=_steps(sampler, 6), strength=0.6, guidance=7.5, sampler=sampler)
    yield img2img("ddim-1", steps=6, strength=0.6, guidance=1.0, sampler="ddim")
    yield img2img("weak", steps=8, strength=0.2, guidance=3.0)
    yield img2img("whole", steps=3, strength=1.0, guidance=3.0)
    everything = {"guidance_rescale": 0.5, "guidance_interval": (0.0, 0.8), "eta": 0.3, "negative_prompt": OTHER}
    yield img2img("everything", steps=6, strength=0.6, guidance=7.5, **everything)


def _inpainted() -> Iterator[Case]:
    yield inpaint("defaults", steps=4)
    for sampler in SAMPLERS:
        yield inpaint(f"{sampler}-7.5", steps=_steps(sampler, 6), strength=0.6, guidance=7.5, sampler=sampler)
    yield inpaint("ddim-1", steps=6, strength=0.6, guidance=1.0, sampler="ddim")
    yield inpaint("whole-unipc", steps=4, strength=1.0, guidance=7.5, sampler="unipc")
    yield inpaint("whole-sde", steps=4, strength=1.0, guidance=1.0, sampler="dpmpp_2m_sde")
    yield inpaint("negative", steps=6, strength=0.6, guidance=7.5, negative_prompt=OTHER)


def _inpainted_at(strength: float) -> Iterator[Case]:
    """For a network that repaints and draws nothing else."""
    for sampler in (*SAMPLERS, *MORE_SAMPLERS):
        for guidance in (1.0, 7.5):
            fields: dict[str, Any] = {"steps": _steps(sampler, 5), "guidance": guidance, "sampler": sampler}
            yield inpaint(f"{strength:g}-{sampler}-{guidance:g}", strength=strength, **fields)
    yield inpaint("rescaled", steps=4, guidance=7.5, guidance_rescale=0.7)
    yield inpaint("interval", steps=4, guidance=7.5, guidance_interval=(0.25, 0.75))
    yield inpaint("eta", steps=4, guidance=7.5, eta=0.4)
    yield inpaint("wide", image=picture(2, 48, 96), mask=mask(48, 96), steps=4, guidance=3.0)


def _batch() -> tuple[Case, ...]:
    return (
        text("ddim", steps=5, guidance=1.0),
        text("heun", steps=3, guidance=7.5, sampler="heun", guidance_interval=(0.3, 1.0)),
        img2img("2m", steps=6, strength=0.6, guidance=7.5, sampler="dpmpp_2m"),
        inpaint("unipc", steps=5, strength=0.8, guidance=3.0, sampler="unipc"),
        text("ancestral", steps=4, guidance=7.5, sampler="euler_ancestral", negative_prompt=OTHER),
        text("rescaled", steps=4, guidance=7.5, eta=0.5, guidance_rescale=0.7),
        inpaint("sde", steps=4, guidance=1.0, sampler="dpmpp_2m_sde"),
    )


def _repainted_batch() -> tuple[Case, ...]:
    return (
        inpaint("ddim", steps=5, guidance=1.0),
        inpaint("heun", steps=3, guidance=7.5, sampler="heun", guidance_interval=(0.3, 1.0)),
        inpaint("2m", image=picture(3), steps=6, strength=0.6, guidance=7.5, sampler="dpmpp_2m"),
        inpaint("ancestral", steps=4, guidance=7.5, sampler="euler_ancestral", negative_prompt=OTHER),
    )


def _cached() -> Iterator[Case]:
    """For a U-Net in two depths."""
    for refresh in (1, 2, 3):
        for sampler in ("ddim", "heun", "dpmpp_2m"):
            fields: dict[str, Any] = {"steps": _steps(sampler, 6), "guidance": 3.0, "sampler": sampler}
            yield text(f"{sampler}-refresh-{refresh}", refresh=refresh, **fields)
    yield text("interval", refresh=3, steps=6, guidance=7.5, guidance_interval=(0.3, 0.8), sampler="dpmpp_2m")
    yield text("unguided", refresh=2, steps=5, guidance=1.0, sampler="euler_ancestral")
    yield img2img("refresh-2", refresh=2, steps=8, strength=0.6, guidance=3.0, sampler="unipc")
    yield inpaint("refresh-2", refresh=2, steps=6, strength=0.8, guidance=3.0)


def _cached_inpainted() -> Iterator[Case]:
    for refresh in (1, 2):
        yield inpaint(f"refresh-{refresh}", refresh=refresh, steps=5, guidance=3.0)
        yield inpaint(f"0.6-refresh-{refresh}", refresh=refresh, steps=8, strength=0.6, guidance=7.5, sampler="unipc")


def _cached_batch() -> tuple[Case, ...]:
    return (
        text("every", refresh=1, steps=5, guidance=3.0),
        text("second", refresh=2, steps=6, guidance=7.5, sampler="dpmpp_2m"),
        text("third", refresh=3, steps=6, guidance=1.0, sampler="euler_ancestral"),
        text("heun", refresh=4, steps=4, guidance=3.0, sampler="heun", guidance_interval=(0.3, 1.0)),
        img2img("second", refresh=2, steps=6, strength=0.7, guidance=3.0),
        inpaint("third", refresh=3, steps=5, guidance=3.0, sampler="unipc"),
    )


def _students(steps: int, scales: tuple[float, float]) -> Iterator[Case]:
    """For a network whose steps are fixed."""
    yield text("defaults")
    for sampler in ("ddim", "euler"):
        for guidance in scales:
            yield text(f"{sampler}-{guidance:g}", steps=steps, sampler=sampler, guidance=guidance)
    yield text("wide", width=96)
    yield img2img("defaults")
    for strength in (0.25, 0.6, 0.95, 1.0):
        yield img2img(f"{strength:g}", strength=strength, guidance=scales[1])
    yield inpaint("defaults")
    yield inpaint("0.6", strength=0.6, guidance=scales[1])
    yield inpaint("0.3-unguided", strength=0.3, guidance=scales[0])


def _students_batch(steps: int, guidance: float) -> tuple[Case, ...]:
    return (
        text("usual"),
        img2img("0.6", strength=0.6, guidance=guidance),
        inpaint("whole", guidance=1.0),
        text("other", prompt=OTHER, guidance=guidance, steps=steps, sampler="euler"),
    )


def _grids() -> Iterator[Case]:
    for sampler in SAMPLERS:
        yield text(f"{sampler}-3", steps=_steps(sampler, 5), guidance=3.0, sampler=sampler)


def _flows() -> Iterator[Case]:
    for sampler in ("flow_euler", "heun", "dpmpp_2m", "unipc"):
        yield text(f"{sampler}-3", steps=_steps(sampler, 5), guidance=3.0, sampler=sampler)
    yield img2img("flow", steps=6, strength=0.6, guidance=3.0, sampler="flow_euler")


def _steps(sampler: str, steps: int) -> int:
    """Fewer where a step takes two evaluations."""
    return steps // 2 + 1 if sampler == "heun" else steps
