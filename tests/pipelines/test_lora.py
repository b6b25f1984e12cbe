"""Adapters as people find them, fused as diffusers fuses them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from safetensors.torch import save_file

from stillhouse.errors import ImportFailed
from stillhouse.pipelines.lora import layer_names, read_adapter, sgm_names
from tests.conftest import Checkpoint

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [*ATTENTION, "proj_in", "ff.net.0.proj", "conv1", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"]
TEXT = ["q_proj", "v_proj", "out_proj", "fc1"]
XL_PARTS = ("unet", "text_encoder", "text_encoder_2")
Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def kind_of(name: str) -> Any:
    return diffusers.StableDiffusionXLPipeline if name == "xl" else diffusers.StableDiffusionPipeline


def trained(pipeline: Any, part: str, targets: list[str], **fields: Any) -> tuple[Weights, dict[str, Any]]:
    """Random changes to a part's layers, as peft keeps them: tensors and settings."""
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False, **fields)
    network = getattr(pipeline, part)
    network.add_adapter(config)
    state = {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(network).items()}
    network.delete_adapters("default") if part == "unet" else network.delete_adapter("default")
    return state, config.to_dict()


def fused_by_diffusers(kind: str, checkpoint: Path, file: Path, weight: float) -> dict[str, Weights]:
    pipeline = kind_of(kind).from_pretrained(checkpoint)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=[part for part in XL_PARTS if hasattr(pipeline, part)], lora_scale=weight)
    pipeline.unload_lora_weights()
    return {part: getattr(pipeline, part).state_dict() for part in XL_PARTS if hasattr(pipeline, part)}


def fused_by_us(kind: str, checkpoint: Path, text: str) -> dict[str, Weights]:
    pipeline = kind_of(kind).from_pretrained(checkpoint)
    parts = tuple(part for part in XL_PARTS if hasattr(pipeline, part))
    roles = {part: "denoiser" if part == "unet" else part for part in parts}
    adapter = read_adapter(text, tuple(roles.values()))
    for part, role in roles.items():
        adapter.fuse(role, getattr(pipeline, part))
    return {part: getattr(pipeline, part).state_dict() for part in parts}


def assert_same_change(kind: str, checkpoint: Path, file: Path, weight: float = 0.7) -> None:
    theirs = fused_by_diffusers(kind, checkpoint, file, weight)
    mine = fused_by_us(kind, checkpoint, f"{file}:{weight}")
    before = fused_by_us(kind, checkpoint, f"{file}:0")
    changed = 0
    for part, weights in theirs.items():
        assert weights.keys() == mine[part].keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(mine[part][name], tensor, rtol=1e-5, atol=1e-6)
            changed += not torch.equal(tensor, before[part][name])
    assert changed > 5


@pytest.mark.parametrize("kind", ["sd1", "xl"])
def test_diffusers_and_peft_format(checkpoint: Checkpoint, tmp_path: Path, kind: str) -> None:
    pipeline = kind_of(kind).from_pretrained(checkpoint(kind))
    unet, settings = trained(pipeline, "unet", EVERYTHING, alpha_pattern={"to_v": 1.5}, rank_pattern={"to_k": 2})
    text, text_settings = trained(pipeline, "text_encoder", TEXT)
    fields: dict[str, Any] = {}
    if kind == "xl":
        layers, layer_settings = trained(pipeline, "text_encoder_2", TEXT)
        fields["text_encoder_2_lora_layers"] = layers
        fields["text_encoder_2_lora_adapter_metadata"] = layer_settings
    pipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=unet,
        text_encoder_lora_layers=text,
        unet_lora_adapter_metadata=settings,
        text_encoder_lora_adapter_metadata=text_settings,
        **fields,
    )
    assert_same_change(kind, checkpoint(kind), tmp_path / "pytorch_lora_weights.safetensors")


def test_rank_stabilised_scale(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pipeline = kind_of("sd1").from_pretrained(checkpoint("sd1"))
    unet, settings = trained(pipeline, "unet", ATTENTION, use_rslora=True)
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=unet, unet_lora_adapter_metadata=settings)
    assert_same_change("sd1", checkpoint("sd1"), tmp_path / "pytorch_lora_weights.safetensors")


def kohya(prefix: str, layers: Weights, rename: Callable[[str], str] = str) -> Weights:
    """kohya's names: dots become underscores; each layer has an alpha."""
    file: Weights = {}
    for name, tensor in layers.items():
        layer, part = name.removesuffix(".weight").rsplit(".", 1)
        flat = prefix + rename(layer.replace(".", "_"))
        file[f"{flat}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = tensor.contiguous()
        file[f"{flat}.alpha"] = torch.tensor(1.25)
    return file


def test_kohya_format(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pipeline = kind_of("sd1").from_pretrained(checkpoint("sd1"))
    unet, text = trained(pipeline, "unet", EVERYTHING)[0], trained(pipeline, "text_encoder", TEXT)[0]
    file = kohya("lora_unet_", unet) | kohya("lora_te_text_model_", text)
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in file
    save_file(file, tmp_path / "kohya.safetensors")
    assert_same_change("sd1", checkpoint("sd1"), tmp_path / "kohya.safetensors")


def test_kohya_format_of_xl(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pipeline = kind_of("xl").from_pretrained(checkpoint("xl"))
    layers = {part: trained(pipeline, part, EVERYTHING if part == "unet" else TEXT)[0] for part in XL_PARTS}
    file = kohya("lora_unet_", layers["unet"], lambda name: next(sgm_names(name, depth=1)))
    file |= kohya("lora_te1_text_model_", layers["text_encoder"])
    file |= kohya("lora_te2_", layers["text_encoder_2"])
    save_file(file, tmp_path / "kohya.safetensors")
    assert_same_change("xl", checkpoint("xl"), tmp_path / "kohya.safetensors")


@pytest.mark.parametrize(
    ("ours", "original"),
    [
        ("down_blocks_1_attentions_0_proj_in", "input_blocks_4_1_proj_in"),
        ("down_blocks_2_attentions_1_transformer_blocks_9_ff", "input_blocks_8_1_transformer_blocks_9_ff"),
        ("down_blocks_0_resnets_1_conv1", "input_blocks_2_0_in_layers_2"),
        ("down_blocks_0_downsamplers_0_conv", "input_blocks_3_0_op"),
        ("mid_block_attentions_0_proj_out", "middle_block_1_proj_out"),
        ("mid_block_resnets_1_conv2", "middle_block_2_out_layers_3"),
        ("up_blocks_0_attentions_2_proj_in", "output_blocks_2_1_proj_in"),
        ("up_blocks_1_resnets_0_conv_shortcut", "output_blocks_3_0_skip_connection"),
        ("up_blocks_1_upsamplers_0_conv", "output_blocks_5_2_conv"),
        ("time_embedding_linear_2", "time_embed_2"),
        ("add_embedding_linear_1", "label_emb_0_0"),
    ],
)
def test_names_of_the_original_implementation(ours: str, original: str) -> None:
    assert original in sgm_names(ours, depth=2)


def test_a_network_of_unequal_blocks_has_no_names_of_the_original_implementation() -> None:
    """Which blocks the original numbers would be of cannot be told."""
    first, second = "down_blocks.0.resnets.0.conv1", "down_blocks.1.resnets.0.conv1"
    assert list(layer_names([first, second])) == [
        "down_blocks_0_resnets_0_conv1", "input_blocks_1_0_in_layers_2",
        "down_blocks_1_resnets_0_conv1", "input_blocks_3_0_in_layers_2",
    ]  # fmt: skip
    assert list(layer_names([first, second, "down_blocks.1.resnets.1.conv1"])) == [
        "down_blocks_0_resnets_0_conv1", "down_blocks_1_resnets_0_conv1", "down_blocks_1_resnets_1_conv1",
    ]  # fmt: skip


def test_old_diffusers_names(checkpoint: Checkpoint, tmp_path: Path) -> None:
    pipeline = kind_of("sd1").from_pretrained(checkpoint("sd1"))
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    down, up = torch.randn(4, 32), torch.randn(64, 4)
    file = {
        f"unet.{layer}.processor.to_k_lora.down.weight": down,
        f"unet.{layer}.processor.to_k_lora.up.weight": up,
    }
    save_file(file, tmp_path / "old.safetensors")
    before = pipeline.unet.get_submodule(f"{layer}.to_k").weight.clone()
    assert read_adapter(str(tmp_path / "old.safetensors"), ("denoiser",)).fuse("denoiser", pipeline.unet) == 1
    after = pipeline.unet.get_submodule(f"{layer}.to_k").weight
    torch.testing.assert_close(after, before + up @ down)


def test_peft_s_own_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=EVERYTHING, init_lora_weights=False)
    adapted = peft.get_peft_model(diffusers.UNet2DConditionModel.from_pretrained(checkpoint("sd1") / "unet"), config)
    adapted.save_pretrained(tmp_path)
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint("sd1") / "unet")
    read_adapter(str(tmp_path / "adapter_model.safetensors"), ("denoiser",)).fuse("denoiser", unet)
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(unet.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"unet.mid_block.no_such_layer.lora_A.weight": (4, 32), "unet.mid_block.no_such_layer.lora_B.weight": (64, 4)},
         "1 layers are not in this denoiser, such as mid_block_no_such_layer"),
        ({f"{LAYER}.lora_A.weight": (4, 33), f"{LAYER}.lora_B.weight": (64, 4)},
         r"it was made for another denoiser: this denoiser has the shape \[64, 32\] in layer"),
        ({f"{LAYER}.lora_A.weight": (4, 32)}, "1 keys are not LoRA"),
        ({f"{LAYER}.hada_w1_a": (4, 32)}, "1 keys are not LoRA of denoiser, such as .*hada_w1_a"),
        ({"text_encoder_2.layer.lora_A.weight": (4, 32)}, "1 keys are not LoRA of denoiser, such as text_encoder_2"),
        ({}, "none at all"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_fused(
    checkpoint: Checkpoint, tmp_path: Path, file: dict[str, tuple[int, ...]], message: str
) -> None:
    save_file({name: torch.zeros(shape) for name, shape in file.items()}, tmp_path / "lora.safetensors")
    unet = diffusers.UNet2DConditionModel.from_pretrained(checkpoint("sd1") / "unet")
    with pytest.raises(ImportFailed, match=message):
        read_adapter(str(tmp_path / "lora.safetensors"), ("denoiser",)).fuse("denoiser", unet)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no tensors")
    tensors = {f"{LAYER}.lora_A.weight": torch.zeros(4, 32), f"{LAYER}.lora_B.weight": torch.zeros(64, 4)}
    save_file(tensors, tmp_path / "settings.safetensors", {"lora_adapter_metadata": "{"})
    for text, message in (
        (str(tmp_path / "none.safetensors"), "does not exist"),
        (str(tmp_path / "text.safetensors"), "is not a safetensors file"),
        (str(tmp_path / "settings.safetensors"), "the settings of .* are broken"),
        (f"{tmp_path / 'text.safetensors'}:much", "allowed: FILE or FILE:WEIGHT"),
        (f"{tmp_path / 'text.safetensors'}:nan", "allowed: FILE or FILE:WEIGHT"),
    ):
        with pytest.raises(ImportFailed, match=message):
            read_adapter(text, ("denoiser",))
