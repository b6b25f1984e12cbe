"""Networks of the model that ships with the package: the classes of Stable Diffusion's networks, scaled down."""

from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from stillhouse.shapes.scene import CANVAS
from stillhouse.shapes.train.tokenizer import LENGTH

TEXT_WIDTH = 128
LATENT_CHANNELS, LATENT_SIZE = 4, CANVAS // 4


def build_autoencoder() -> Any:
    """Build an untrained autoencoder of 0.65 M parameters, which maps 64x64 pixels to 16x16 latents of 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=CANVAS,
        mid_block_add_attention=False,
    )


def build_text_encoder(tokenizer: Any) -> Any:
    """Build an untrained text encoder of 0.63 M parameters, which maps 24 tokens to 24 vectors of 128 values.

    Args:
        tokenizer: CLIP tokenizer, which gives the size of the vocabulary and the ids of the special tokens.
    """
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_denoiser() -> Any:
    """Build an untrained denoiser (U-Net) of 4.2 M parameters.

    The denoiser has convolutions at a resolution of 16x16 latents, and also cross-attention at 8x8 and 4x4.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """Build the diffusers scheduler of the denoiser.

    The scheduler has v-prediction, zero terminal SNR (arXiv 2305.08891), and the betas of Stable Diffusion.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        set_alpha_to_one=True,
        # The offset has no effect with trailing spacing, but diffusers warns about any value except 1.
        steps_offset=1,
    )
