"""Every name of the project that the yardstick uses, newest first: the one file to change when something is renamed.

One driver runs in both trees. A new name is therefore added before the old name, and the old name stays. `FIELDS` does
the same for fields of requests and of manifests, `ATTRIBUTES` for attributes of a picture.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

PLACES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "load": ("stillhouse:load",),
        "Pipeline": ("stillhouse:Pipeline",),
        "ImageRequest": ("stillhouse:ImageRequest",),
        "import_model": ("stillhouse.convert.import_model:import_model", "stillhouse.models.importers:import_model"),
        "ImportOptions": (
            "stillhouse.convert.import_options:ImportOptions",
            "stillhouse.models.importers:ImportOptions",
        ),
        "cut_unet": (
            "stillhouse.backends.deepcache_split:split_denoiser",
            "stillhouse.backends.deepcache_split:split_unet",
            "stillhouse.backends.deepcache_split:cut_unet",
            "stillhouse.backends.cut:cut_unet",
        ),
        "read_manifest": ("stillhouse.pipelines.manifest:read_manifest", "stillhouse.models.manifest:read_manifest"),
        "StepCache": ("stillhouse.pipelines.manifest:StepCache", "stillhouse.models.manifest:StepCache"),
        "Distilled": ("stillhouse.pipelines.manifest:Distilled", "stillhouse.models.manifest:Distilled"),
        "Edit": ("stillhouse.pipelines.manifest:Edit", "stillhouse.models.manifest:Edit"),
        "Schedule": ("stillhouse.diffusion:Schedule",),
    }
)
"""By today's name, where it may be: MODULE:NAME."""
FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType({"refresh": ("cache_interval", "refresh")})
"""By today's name, what a field of a dataclass may be called."""
SAMPLING = ("schedule", "prediction", "spacing", "sigmas", "steps_offset")
"""Fields of a manifest that are its sampling's since version 2."""
ATTRIBUTES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"latents": ("latents",), "denoised": ("denoised",), "is_done": ("is_done",), "conditioning": ("conditioning",)}
)
"""By today's name, what an attribute of a picture in the making may be called."""
OPENED = MappingProxyType({"backend": "onnxruntime", "precision": "f32", "threads": 1})
TILE = 32
STUDENTS_STEPS = (999.0, 656.0, 342.0)
STUDENTS_EDITS = {0.3: (299.0, 150.0), 0.6: (599.0, 398.0, 197.0)}


def named(name: str) -> Any:
    """Find what `PLACES` lists under this name.

    Raises:
        ImportError: it is at none of its places. A module that is there and fails raises what it raises.
    """
    for place in PLACES[name]:
        module, _, attribute = place.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
        except AttributeError:
            continue
    raise ImportError(f"{name} is at none of {', '.join(PLACES[name])}: add its new name to {__file__}")


def replaced(record: Any, changes: Mapping[str, Any]) -> Any:
    """Copy a dataclass with some fields changed, which have today's names."""
    return replace(record, **_renamed(type(record), changes))


def made(name: str, fields: Mapping[str, Any]) -> Any:
    """Make a dataclass of `PLACES` of its fields, which have today's names."""
    kind = named(name)
    return kind(**_renamed(kind, fields))


def attribute(picture: Any, name: str) -> Any:
    """Read an attribute of a picture in the making, which has today's name."""
    for possible in ATTRIBUTES[name]:
        if hasattr(picture, possible):
            return getattr(picture, possible)
    raise AttributeError(f"{type(picture).__name__} has none of {', '.join(ATTRIBUTES[name])}: see {__file__}")


def conditioning(picture: Any) -> Mapping[str, Any]:
    """Give the inputs of the prompt's row beside latents and timestep, by name."""
    if hasattr(picture, "branches"):
        return dict(picture.branches["conditional"].inputs)
    inputs: Mapping[str, Any] = attribute(picture, "conditioning")
    return inputs


def imported(source: Path, target: Path, adapter: Path | None = None) -> Path:
    """Import a diffusers directory, with a LoRA fused where one is given; returns `target`."""
    options = {"loras": () if adapter is None else (f"{adapter}:0.8",)}
    named("import_model")(source, target, made("ImportOptions", options))
    return target


def embedded(name: str) -> Path:
    """Find the directory of an embedded model."""
    directory: Path = named("load")(name).directory
    return directory


def opened(directory: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """Open a pipeline directory on onnxruntime in f32 with one thread, some fields of its manifest changed."""
    if not changes:
        return named("load")(directory, **OPENED)
    manifest = named("read_manifest")(directory)
    if hasattr(manifest, "sampling"):
        sampling = {name: changes[name] for name in SAMPLING if name in changes}
        rest = {name: value for name, value in changes.items() if name not in SAMPLING}
        changes = {**rest, "sampling": replaced(manifest.sampling, sampling)}
    return named("Pipeline")(directory, manifest=replaced(manifest, changes), **OPENED)


def _renamed(kind: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    fields_of_kind = kind.__dataclass_fields__
    return {
        next((field for field in FIELDS.get(name, ()) if field in fields_of_kind), name): value
        for name, value in fields.items()
    }


def _cut(directory: Path, scratch: Path) -> Any:
    """Its U-Net in two depths, for step caching."""
    copy = shutil.copytree(directory, scratch / "cut")
    halves = named("cut_unet")(copy / "unet/model.onnx")
    graphs = {name: getattr(halves, name).relative_to(copy).as_posix() for name in ("full", "shallow")}
    return opened(copy, {"step_cache": made("StepCache", graphs)})


def _tiled(directory: Path, scratch: Path) -> Any:
    """Pictures above 32 pixels a side decoded in tiles."""
    defaults = named("read_manifest")(directory).defaults
    return opened(directory, {"defaults": replaced(defaults, {"tile": TILE})})


def _student(directory: Path, scratch: Path) -> Any:
    """Steps fixed by the manifest, with guidance in two rows, and with steps of their own for two strengths."""
    edits = tuple(made("Edit", {"strength": one, "timesteps": timesteps}) for one, timesteps in STUDENTS_EDITS.items())
    distilled = {"timesteps": STUDENTS_STEPS, "guidance": (1.0, 7.5), "method": "walks", "teacher": ("sd1", "0" * 64)}
    defaults = replaced(named("read_manifest")(directory).defaults, {"steps": len(STUDENTS_STEPS)})
    return opened(directory, {"distilled": made("Distilled", {**distilled, "edits": edits}), "defaults": defaults})


def _static(directory: Path, scratch: Path) -> Any:
    """Batches brought to one, two or four rows, for each of which the U-Net is opened."""
    components = named("read_manifest")(directory).components
    role = "denoiser" if "denoiser" in components else "unet"
    network = replaced(components[role], {"static": True, "rows": (1, 2, 4)})
    return opened(directory, {"components": {**components, role: network}})


def _with(**changes: Any) -> Callable[[Path, Path], Any]:
    return lambda directory, scratch: opened(directory, changes)


def _sample(directory: Path, scratch: Path) -> Any:
    """A network that predicts the clean picture, between latents that are shifted."""
    latent = replaced(named("read_manifest")(directory).latent, {"shift_factor": 0.1})
    return opened(directory, {"prediction": "sample", "latent": latent})


def _flow(directory: Path, scratch: Path) -> Any:
    """A flow schedule, for which the network was not trained."""
    schedule = made("Schedule", {"kind": "flow", "shift": 3.0})
    return opened(directory, {"schedule": schedule, "prediction": "flow", "spacing": "trailing"})


WAYS: Mapping[str, Callable[[Path, Path], Any]] = MappingProxyType(
    {
        "": lambda directory, scratch: opened(directory),
        "cut": _cut,
        "tiled": _tiled,
        "student": _student,
        "static": _static,
        "sample": _sample,
        "flow": _flow,
        "karras": _with(sigmas="karras"),
        "exponential": _with(sigmas="exponential", spacing="trailing"),
        "linspace": _with(spacing="linspace"),
    }
)
"""Ways to open a pipeline directory: each takes it and an empty scratch directory, and gives an open pipeline."""
