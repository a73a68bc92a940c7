"""Which model this is, said before anything large is downloaded or read: only 1.x and 2.x can be used.

Other models share classes, file names and parts of tensors' names with them, so that they would fail late,
over something that has nothing to do with the reason.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ge3d_jax.core.errors import UserError, shown

USE = "use a text-to-image model of Stable Diffusion 1.x or 2.x"

# Parts of the names of diffusers' pipelines, the first that fits, and what these are.
_PIPELINES = {
    "StableDiffusionXL": "SDXL",
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "LatentConsistency": "LCM, a distilled model with a sampler of its own",
    "Inpaint": "an inpainting model",
    "Depth2Img": "a model that is given depths",
    "Pix2Pix": "a model that edits by instructions",
    "Upscale": "an upscaler",
    "ImageVariation": "a model that is given pictures instead of texts",
    "ControlNet": "a model with a ControlNet",
    "Adapter": "a model with an adapter",
    "StableVideo": "a model of videos",
    "TextToVideo": "a model of videos",
    "AnimateDiff": "a model of videos",
    "AltDiffusion": "AltDiffusion, with another text encoder",
    "StableUnCLIP": "unCLIP, which is given pictures",
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
# The networks of a model: the class that its index must name. Flax classes have "Flax" before it.
CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
# Parts of an index that are not computed with, or not networks.
_OTHER_PARTS = ("scheduler", "tokenizer", "safety_checker", "feature_extractor", "image_encoder")

# The inputs of a UNet beyond the four latent channels of text-to-image models.
_INPUTS = {
    5: "it is also given depths",
    7: "it is an upscaler",
    8: "it edits by instructions (InstructPix2Pix)",
    9: "it is an inpainting model",
}

# Single files: a pattern of tensors' names, and what they are. The first that fits.
_CHECKPOINTS = {
    r"conditioner\.embedders\.": "SDXL",
    r"(model\.diffusion_model\.)?joint_blocks\.": "Stable Diffusion 3",
    r"(model\.diffusion_model\.)?(double_blocks|single_blocks)\.": "FLUX",
    r"(transformer\.)?single_transformer_blocks\.": "FLUX",
    r"model\.diffusion_model\.time_embed\.cond_proj": "LCM, a distilled model with a sampler of its own",
    r"(lora_unet_|lora_te|base_model\.model\.|.*[._]lora[._])": "a LoRA (give it as one)",
    r"(emb_params$|string_to_param)": "a textual inversion (give it as one)",
    r"control_model\.|input_hint_block\.": "a ControlNet",
    r"down_blocks\.\d": "one network in diffusers' layout (give its model's folder)",
}


def check_index(index: Mapping[str, Any], place: str) -> None:
    """Check that a `model_index.json` describes a Stable Diffusion 1.x or 2.x model.

    Args:
        index: contents of the file.
        place: the file or hub id, for messages.

    Raises:
        UserError: it describes another model; names it.
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
            raise UserError(f"{place} has a part more than these models have, {shown(part)}; {USE}.")


def check_unet(config: Mapping[str, Any], place: str) -> None:
    """Check that a `unet/config.json` is of a text-to-image model of Stable Diffusion 1.x or 2.x.

    Raises:
        UserError: it is of another one; names it.
    """
    kind = None
    channels = config.get("in_channels")
    if config.get("addition_embed_type") == "text_time":
        kind = "it is of SDXL"
    elif config.get("time_cond_proj_dim") is not None:
        kind = "it is of LCM, a distilled model with a sampler of its own"
    elif isinstance(channels, int) and channels != config.get("out_channels", 4):
        kind = _INPUTS.get(channels)
    if kind is not None:
        raise UserError(
            f"{place} is not of a text-to-image model of Stable Diffusion 1.x or 2.x: {kind}; {USE}."
        )


def foreign_checkpoint(names: Collection[str]) -> str | None:
    """What a single file is, by its tensors' names, if it is of a known kind that does not fit, or None."""
    for pattern, kind in _CHECKPOINTS.items():
        if any(re.match(pattern, name) for name in names):
            return kind
    return None
