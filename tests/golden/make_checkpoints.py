"""Write the committed checkpoints anew: `python -m tests.golden.make_checkpoints`; this needs the extra `train`.

Other versions of torch or diffusers draw other random weights: afterwards `python -m tests.golden.record` has to run,
and every hash that the yardstick has kept is void. So it is run only where a checkpoint has to be added.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import peft
import torch

from tests.checkpoints import KINDS, NetworkSizes, write_checkpoint
from tests.golden.pictures import ADAPTER, CHECKPOINTS

WIDTHS = (16, 32)
"""Channels of the U-Net's blocks: with float16 weights the four checkpoints and the adapter take 3.2 MB."""


def main() -> None:
    """Write every kind, and a LoRA for `sd1`."""
    for kind in KINDS:
        with TemporaryDirectory() as folder:
            made = Path(folder, kind)
            write_checkpoint(kind, made, NetworkSizes(unet=WIDTHS), half=True)
            shutil.rmtree(CHECKPOINTS / kind, ignore_errors=True)
            shutil.copytree(made, CHECKPOINTS / kind)
    write_adapter(CHECKPOINTS / "sd1", ADAPTER)


def write_adapter(checkpoint: Path, file: Path) -> None:
    """Write a random LoRA of rank 2 for the attention of a checkpoint's U-Net and of its text encoder."""
    torch.manual_seed(11)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint)
    layers = {}
    for part, targets in (("unet", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        network = getattr(pipeline, part)
        network.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        layers[f"{part}_lora_layers"] = peft.get_peft_model_state_dict(network)
    pipeline.save_lora_weights(file.parent, weight_name=file.name, **layers)


if __name__ == "__main__":
    main()
