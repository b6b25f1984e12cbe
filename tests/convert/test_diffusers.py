"""What becomes of a diffusers directory, and what is said of one that cannot be used."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from stillhouse.convert.import_model import ImportOptions, import_model
from stillhouse.core import ImageRequest
from stillhouse.diffusion import CONDITIONAL, Schedule
from stillhouse.errors import ImportFailed, RuntimeMissing, UnknownModel
from stillhouse.pipelines.families import find_family
from stillhouse.pipelines.manifest import MANIFEST, Manifest, read_manifest
from stillhouse.pipelines.pipeline import Pipeline
from tests.conftest import PROMPT, Checkpoint

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(checkpoint: Checkpoint, tmp_path: Path) -> Callable[[str], Path]:
    """A checkpoint that a test may break."""

    def make(kind: str) -> Path:
        return Path(shutil.copytree(checkpoint(kind), tmp_path / "source"))

    return make


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sd1", {"prediction": "epsilon", "spacing": "leading", "in_channels": 4, "zero_negative": False}),
        ("sd2", {"prediction": "v_prediction", "spacing": "trailing"}),
        ("sd2", {"schedule": Schedule("scaled_linear", 0.00085, 0.012, zero_terminal_snr=True)}),
        ("inpaint", {"in_channels": 9, "is_inpainting": True, "family": "stable-diffusion"}),
        ("xl", {"family": "stable-diffusion-xl", "zero_negative": True}),
        ("xl", {"tokenizers": {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}}),
    ],
)
def test_the_manifest(imported: Checkpoint, kind: str, expected: dict[str, Any]) -> None:
    manifest = read_manifest(imported(kind), verify=True)
    flat = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
    flat |= {"is_inpainting": find_family(manifest.family).is_inpainting(manifest)}
    flat |= {**asdict(manifest.sampling), **manifest.family_options}
    flat["schedule"] = manifest.sampling.schedule
    assert {name: flat[name] for name in expected} == expected
    assert manifest.granularity == 8 and manifest.latent.downscale == 4
    assert (manifest.defaults.width, manifest.defaults.height) == (64, 64)
    assert manifest.source["importer"] == "diffusers" and manifest.source["from"] == kind


@pytest.mark.parametrize("kind", ["sd2", "xl"])
def test_diffusers_opens_the_pipeline_directory(checkpoint: Checkpoint, imported: Checkpoint, kind: str) -> None:
    before = diffusers.DiffusionPipeline.from_pretrained(checkpoint(kind))
    after = diffusers.DiffusionPipeline.from_pretrained(imported(kind))
    assert type(before) is type(after)
    assert before.scheduler.config == after.scheduler.config
    assert before.tokenizer(PROMPT).input_ids == after.tokenizer(PROMPT).input_ids
    for part in ("text_encoder", "unet", "vae"):
        weights = getattr(after, part).state_dict()
        for name, tensor in getattr(before, part).state_dict().items():
            assert torch.equal(tensor, weights[name])


def test_a_pipeline_directory_can_be_imported_again(imported: Checkpoint, tmp_path: Path) -> None:
    manifest = import_model(imported("sd1"), tmp_path / "again")
    first = read_manifest(imported("sd1"))
    assert {name: record.sha256 for name, record in manifest.files.items()} == {
        name: record.sha256 for name, record in first.files.items()
    }


def test_nothing_tells_where_it_was_made(imported: Checkpoint) -> None:
    place = str(imported("sd1").parent).encode()
    assert not [path for path in imported("sd1").rglob("*") if path.is_file() and place in path.read_bytes()]
    graph = (imported("sd1") / "unet/model.onnx").read_bytes()
    assert b"site-packages" not in graph and str(Path.cwd()).encode() not in graph


def test_progress(checkpoint: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    import_model(checkpoint("sd1"), tmp_path / "out", progress=lambda *place: seen.append(place))
    assert seen == [("text_encoder", 1, 3), ("unet", 2, 3), ("vae", 3, 3)]


def dtypes(directory: Path) -> set[torch.dtype]:
    return {tensor.dtype for path in directory.rglob("*.safetensors") for tensor in load_file(path).values()}


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_halves_stay_halves(checkpoint: Checkpoint, tmp_path: Path, variant: str | None) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("sd1"), dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "source", variant=variant)
    import_model(tmp_path / "source", tmp_path / "out")
    assert dtypes(tmp_path / "out") == {torch.float16}
    assert_draws_alike(tmp_path / "out", checkpoint("sd1"), 4)


def test_weights_in_a_dtype_that_was_asked_for(checkpoint: Checkpoint, tmp_path: Path) -> None:
    import_model(checkpoint("sd1"), tmp_path / "out", ImportOptions(dtype="bfloat16"))
    assert dtypes(tmp_path / "out") == {torch.bfloat16}
    assert_draws_alike(tmp_path / "out", checkpoint("sd1"), 16)


def test_bin_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("sd1"))
    pipeline.save_pretrained(tmp_path / "source")
    for path in (tmp_path / "source").rglob("*.safetensors"):
        name = "pytorch_model.bin" if path.parent.name == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(path), path.with_name(name))
        path.unlink()
    import_model(tmp_path / "source", tmp_path / "out")
    assert_draws_alike(tmp_path / "out", checkpoint("sd1"), 0.5)


def assert_draws_alike(directory: Path, checkpoint: Path, most: float) -> None:
    """The mean difference to diffusers with the checkpoint in float32, of 255 levels."""
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(3))
    reference = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint)
    reference.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        image = reference(PROMPT, latents=noise, num_inference_steps=4, guidance_scale=2.0).images[0]
    pipeline = Pipeline(directory, threads=1)
    draft = pipeline.start(ImageRequest(PROMPT, steps=4, guidance=2.0), noise=noise[0].numpy())
    while not draft.is_done:
        pipeline.advance([draft])
    assert np.abs(pipeline.finish(draft).image.astype(int) - np.asarray(image)).mean() <= most


def test_fused_adapters(checkpoint: Checkpoint, tmp_path: Path) -> None:
    reference = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint("sd1"))
    reference.set_progress_bar_config(disable=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        reference.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_v"], init_lora_weights=False))
        layers = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(reference.unet).items()}
        reference.unet.delete_adapters("default")
        reference.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name=f"{seed}.safetensors")
    loras = (f"{tmp_path / '1.safetensors'}:0.5", f"{tmp_path / '2.safetensors'}")
    manifest = import_model(checkpoint("sd1"), tmp_path / "out", ImportOptions(loras=loras))
    assert manifest.source["loras"] == ["1.safetensors:0.5", "2.safetensors"]
    for seed, weight in ((1, 0.5), (2, 1.0)):
        reference.load_lora_weights(tmp_path / f"{seed}.safetensors")
        reference.fuse_lora(lora_scale=weight)
        reference.unload_lora_weights()
    weights = load_file(tmp_path / "out" / UNET)
    for name, tensor in reference.unet.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-5, atol=1e-6)


def test_latent_consistency_models(copy: Callable[[str], Path], tmp_path: Path) -> None:
    source = copy("sd1")
    index = source / "model_index.json"
    edit(index, _class_name="LatentConsistencyModelPipeline", scheduler=["diffusers", "LCMScheduler"])
    unet = diffusers.UNet2DConditionModel.from_pretrained(source / "unet")
    config = {**unet.config, "time_cond_proj_dim": 16}
    config.pop("_use_default_values", None)
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel.from_config(config).save_pretrained(source / "unet")
    manifest = import_model(source, tmp_path / "out")
    assert manifest.family_options["guidance_channels"] == 16 and manifest.sampling.spacing == "trailing"
    assert (manifest.defaults.sampler, manifest.defaults.steps, manifest.defaults.guidance) == ("lcm", 4, 8.5)
    reference = diffusers.LatentConsistencyModelPipeline.from_pretrained(source)
    embedded = reference.get_guidance_scale_embedding(torch.tensor([7.5]), embedding_dim=16)[0]
    pipeline = Pipeline(tmp_path / "out", threads=1)
    draft = pipeline.start(ImageRequest(PROMPT))
    np.testing.assert_allclose(draft.branches[CONDITIONAL].inputs["timestep_cond"], embedded, atol=1e-3)
    assert draft.rows == 1
    pipeline.advance([draft])


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no index": ("sd1", lambda d: (d / "model_index.json").unlink(), "no diffusers directory: it has no model_index"),
    "broken index": ("sd1", lambda d: (d / "model_index.json").write_text("{"), "model_index.json is not JSON"),
    "no text encoder": ("sd1", lambda d: shutil.rmtree(d / "text_encoder"), "text_encoder is missing"),
    "no unet": ("sd1", lambda d: shutil.rmtree(d / "unet"), "unet is missing, though model_index.json names it"),
    "no vae": ("sd1", lambda d: shutil.rmtree(d / "vae"), "vae is missing"),
    "no tokenizer": ("sd1", lambda d: shutil.rmtree(d / "tokenizer"), "tokenizer is missing"),
    "no scheduler": ("sd1", lambda d: shutil.rmtree(d / "scheduler"), "scheduler is missing"),
    "no second encoder": ("xl", lambda d: shutil.rmtree(d / "text_encoder_2"), "text_encoder_2 is missing"),
    "no vocabulary": ("sd1", lambda d: (d / "tokenizer/tokenizer.json").unlink(), "tokenizer has no vocabulary"),
    "no config": ("sd1", lambda d: (d / "vae/config.json").unlink(), "vae/config.json is missing"),
    "no weights": ("sd1", lambda d: (d / UNET).unlink(), r"unet has no weights; allowed: \*.safetensors or \*.bin"),
    "half the weights": ("sd1", lambda d: (d / UNET).write_bytes((d / UNET).read_bytes()[:99_999]), "unet"),
    "a layer less": (
        "sd1",
        lambda d: drop(d / UNET, "conv_in.weight"),
        "no fitting weights for 1 tensors of the network, such as conv_in.weight;",
    ),
    "two layers less": (
        "sd1",
        lambda d: drop(d / UNET, "conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias"),
        "no fitting weights for 4 tensors of the network, such as conv_in.bias, conv_in.weight, conv_out.bias;",
    ),
    "another layer": ("sd1", lambda d: drop(d / UNET, "conv_in.bias", shape=(7,)), "unet.*conv_in.bias"),
    "another kind": ("sd1", lambda d: edit(d / "model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline"),
    "another network": (
        "sd1",
        lambda d: edit(d / "model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        "vae is a AutoencoderTiny, which is not known; allowed: AutoencoderKL",
    ),
    "a refiner": ("xl", lambda d: edit(d / "model_index.json", text_encoder=[None, None]), "no text_encoder.*refiner"),
    "8 channels": ("sd1", lambda d: edit(d / "unet/config.json", in_channels=8), "takes 8 channels; allowed: 4 .* 9"),
    "class labels": ("sd1", lambda d: edit(d / "unet/config.json", class_embed_type="timestep"), "class_embed_type"),
    "latent means": ("sd1", lambda d: edit(d / "vae/config.json", latents_mean=[0, 0, 0, 0]), "normalises its latents"),
    "a scheduler": (
        "sd1",
        lambda d: edit(d / "model_index.json", scheduler=["diffusers", "IPNDMScheduler"]),
        "scheduler IPNDMScheduler is not known; allowed: DDIMScheduler,",
    ),
    "a mask of tokens": (
        "sd1",
        lambda d: edit(d / "text_encoder/config.json", use_attention_mask=True),
        "takes an attention mask",
    ),
    "few embeddings": (
        "sd1",
        lambda d: edit(d / "text_encoder/config.json", vocab_size=9),
        r"tokenizer has \d+ tokens, more than text_encoder knows; allowed: at most 9$",
    ),
}


def drop(path: Path, *names: str, shape: tuple[int, ...] | None = None) -> None:
    """Delete tensors from a safetensors file, or replace them with zeros of another shape."""
    tensors = load_file(path)
    for name in names:
        del tensors[name]
    changed = {} if shape is None else {name: torch.zeros(shape) for name in names}
    save_file({**tensors, **changed}, path, {"format": "pt"})


@pytest.mark.parametrize("fault", FAULTS)
def test_sources_that_cannot_be_used(copy: Callable[[str], Path], tmp_path: Path, fault: str) -> None:
    kind, damage, message = FAULTS[fault]
    source = copy(kind)
    damage(source)
    with pytest.raises(ImportFailed, match=message):
        import_model(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("option", "message"),
    [({"dtype": "int8"}, "no dtype 'int8'; allowed: float32"), ({"loras": ("no.safetensors",)}, "does not exist")],
)
def test_options_that_cannot_be_used(
    checkpoint: Checkpoint, tmp_path: Path, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(ImportFailed, match=message):
        import_model(checkpoint("sd1"), tmp_path / "out", ImportOptions(**option))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no-such-model", "./nobody/no-such-model"])
def test_sources_that_do_not_exist(tmp_path: Path, source: str) -> None:
    with pytest.raises(UnknownModel, match=r"there is no directory .*no-such-model"):
        import_model(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ImportFailed, match="is a file; allowed: a directory that diffusers saved"):
        import_model(tmp_path / "model.ckpt", tmp_path / "out")


def test_an_interrupted_import_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def interrupt(component: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(checkpoint("sd1"), tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(RuntimeMissing, match=r"needs diffusers.*pip install 'stillhouse\[train\]'"):
        import_model("anything", tmp_path / "out")


def test_the_libraries_speak_as_before(checkpoint: Checkpoint, tmp_path: Path) -> None:
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    with pytest.raises(ImportFailed):
        import_model(tmp_path, tmp_path / "out")
    assert [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries] == before


def test_force_replaces_a_pipeline(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def name_of(manifest: Manifest) -> str:
        return manifest.name

    out = tmp_path / "out"
    assert name_of(import_model(checkpoint("sd1"), out)) == "out"
    (out / "stray").touch()
    import_model(checkpoint("sd1"), out, ImportOptions(name="second", force=True))
    assert name_of(read_manifest(out)) == "second"
    assert not (out / "stray").exists() and (out / MANIFEST).stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
