"""Recognizing a model's kind before anything large is downloaded or read: only 1.x and 2.x are supported.

Other models share classes, file names, and parts of tensor names with them. Without these checks, they would
fail late, with an error unrelated to the cause.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ge3d_jax.core.errors import UserError, shown

USE = "use a text-to-image model of Stable Diffusion 1.x or 2.x"

# Substrings of the names of diffusers' pipelines, and what they are. The first match counts.
_PIPELINES = {
    "StableDiffusionXL": "SDXL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "LatentConsistency": "LCM, a distilled model with its own sampler",
    "Inpaint": "an inpainting model",
    "Depth2Img": "a depth-conditioned model",
    "Pix2Pix": "an instruction-based editing model",
    "Upscale": "an upscaler",
    "ImageVariation": "a model conditioned on images instead of text",
    "ControlNet": "a model with a ControlNet",
    "Adapter": "a model with an adapter",
    "StableVideo": "a video model",
    "TextToVideo": "a video model",
    "AnimateDiff": "a video model",
    "AltDiffusion": "AltDiffusion, with another text encoder",
    "StableUnCLIP": "unCLIP, which is conditioned on images",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
    "StableCascade": "Stable Cascade",
    "Wuerstchen": "Würstchen",
    "Sana": "Sana",
    "Lumina": "Lumina",
    "QwenImage": "Qwen-Image",
    "AuraFlow": "AuraFlow",
    "HunyuanDiT": "Hunyuan-DiT",
    "Cogview": "CogView",
    "DeepFloyd": "DeepFloyd IF",
    "IFPipeline": "DeepFloyd IF",
}
# A model's networks, and the classes that its index must name. Flax classes start with "Flax".
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
# Parts of an index that we do not compute with, or that are not networks.
_OTHER_PARTS = ("scheduler", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")

# UNets with more inputs than the four latent channels of text-to-image models.
_INPUTS = {
    5: "it is depth-conditioned",
    7: "it is an upscaler",
    8: "it is an instruction-based editing model (InstructPix2Pix)",
    9: "it is an inpainting model",
}

# Single files: patterns of tensor names, and what they are. The first match counts.
_CHECKPOINTS = {
    r"conditioner\.embedders\.": "SDXL",
    r"(model\.diffusion_model\.)?joint_blocks\.": "Stable Diffusion 3",
    r"(model\.diffusion_model\.)?(double_blocks|single_blocks)\.": "FLUX",
    r"(transformer\.)?single_transformer_blocks\.": "FLUX",
    r"model\.diffusion_model\.time_embed\.cond_proj": "LCM, a distilled model with its own sampler",
    r"(lora_unet_|lora_te|base_model\.model\.|.*[._]lora[._])": "a LoRA (pass it as one)",
    r"(emb_params$|string_to_param)": "a textual inversion (pass it as one)",
    r"control_model\.|input_hint_block\.": "a ControlNet",
    r"down_blocks\.\d": "a single network in diffusers' layout (give its model's folder)",
}


def check_index(index: Mapping[str, Any], place: str) -> None:
    """Check that a `model_index.json` describes a Stable Diffusion 1.x or 2.x model.

    Args:
        index: the file's contents.
        place: the file or hub id, for messages.

    Raises:
        UserError: it describes another model; the message names it.
    """
    name = index.get("_class_name", "no pipeline")
    kind = next((kind for part, kind in _PIPELINES.items() if isinstance(name, str) and part in name), None)
    if kind is not None:
        raise UserError(f"{place} is {name}: {kind}; {USE}.")
    for part, known in CLASSES.items():
        entry = index.get(part)
        if not isinstance(entry, list) or entry[-1:] not in ([known], [f"Flax{known}"]):
            shown_name = shown(name).strip("'")
            raise UserError(
                f"{place} is {shown_name}, whose {part} is {shown(entry)} instead of {known}; {USE}."
            )
    for part, entry in index.items():
        is_network = isinstance(entry, list) and any(entry) and part not in (*CLASSES, *_OTHER_PARTS)
        if is_network and not part.startswith("_"):
            raise UserError(f"{place} has a part that these models do not have, {shown(part)}; {USE}.")


def check_unet(config: Mapping[str, Any], place: str) -> None:
    """Check that a `unet/config.json` describes a text-to-image model of Stable Diffusion 1.x or 2.x.

    Raises:
        UserError: it describes another model; the message names it.
    """
    kind = None
    channels = config.get("in_channels")
    if config.get("addition_embed_type") == "text_time":
        kind = "it belongs to SDXL"
    elif config.get("time_cond_proj_dim") is not None:
        kind = "it belongs to LCM, a distilled model with its own sampler"
    elif isinstance(channels, int) and channels != config.get("out_channels", 4):
        kind = _INPUTS.get(channels)
    if kind is not None:
        raise UserError(
            f"{place} does not describe a text-to-image model of Stable Diffusion 1.x or 2.x: {kind}; {USE}."
        )


def foreign_checkpoint(names: Collection[str]) -> str | None:
    """Recognize a single file of a known but unsupported kind by its tensor names; None for any other."""
    for pattern, kind in _CHECKPOINTS.items():
        if any(re.match(pattern, name) for name in names):
            return kind
    return None
