"""Stable Diffusion in a single file, with the names of its original release.

Such a file (`v2-1_512-ema-pruned.safetensors`, and most that circulate) holds the tensors of the three
networks and nothing else. The configuration is inferred from the shapes of the tensors. The rest is known for
each of the two families: 1.x has 8 heads in all layers and CLIP's text encoder; 2.x has heads of 64 channels
and OpenCLIP's text encoder, whose last layer is not used. What a model predicts, noise or v, is determined
by, in this order: a `scheduler/scheduler_config.json` next to it; the trainer's .yaml next to it
(`parameterization: "v"`); the metadata `modelspec.prediction_type`; marker tensors (`v_pred`; `ztsnr` for
zero terminal SNR); and, for 2.x, "512" or "768" in the file's name. By default, 1.x predicts noise. The
tokenizer comes from a folder `tokenizer/` next to the file, or from the hub.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flax import linen as nn

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.schedule import noise_schedule_from_config
from ge3d_jax.diffusion.weights.config_files import naming
from ge3d_jax.diffusion.weights.folder import (
    SCHEDULER_FILE,
    ModelFiles,
    NetworkFiles,
    load_tokenizer,
    plain_text_name,
)
from ge3d_jax.diffusion.weights.hub import BASE_MIRROR, SD1_MIRROR, download_tokenizer
from ge3d_jax.diffusion.weights.model_kinds import USE, check_unet, foreign_checkpoint
from ge3d_jax.diffusion.weights.open_clip import count_layers, replace_parts, text_tensors
from ge3d_jax.diffusion.weights.parameters import parameter_shapes, some_names, tensor_names
from ge3d_jax.diffusion.weights.tensor_files import (
    StoredTensor,
    open_tensors,
    read_json,
    read_metadata,
    rename_tensors,
)

Tensors = Mapping[str, StoredTensor]

_UNET_PREFIX = "model.diffusion_model."
_VAE_PREFIX = "first_stage_model."
_CLIP_PREFIX = "cond_stage_model.transformer."
_OPEN_CLIP_PREFIX = "cond_stage_model.model."

# Channels per head in the UNet of 2.x and in both text encoders; number of heads in the UNet of 1.x.
_HEAD_SIZE = 64
_SD1_HEADS = 8
# Edge of the latents of models trained at 512 and 768 pixels, which in 2.x predict noise and v, respectively.
_SIZES = {"epsilon": 64, "v_prediction": 96}
# Marker tensors of fine-tuned models, and metadata of some trainers.
_PREDICTS_V, _ZERO_SNR = "v_pred", "ztsnr"
_METADATA = "modelspec.prediction_type"
_YAML = re.compile(r"^\s*parameterization\s*:\s*[\"']?(v|eps)\b", re.MULTILINE)
# The size limit of a trainer's configuration, which takes a few kilobytes.
_LONGEST_YAML = 2**20
_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}

# Parts of diffusers' names, and the corresponding parts of the original names.
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_PARTS = {
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}


def original_unet_name(name: str, config: UNetConfig) -> str:
    """Return the original name, without prefix, of the UNet tensor or module called `name` in diffusers."""
    layers = config.layers_per_block
    ending = name.rsplit("resnets.", 1)
    if len(ending) == 2:
        name = f"{ending[0]}resnets.{replace_parts(ending[1], _RESNET)}"

    def block(match: re.Match[str]) -> str:
        way, index, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if way == "down":
            place = (index + 1) * (layers + 1) if kind == "downsamplers" else index * (layers + 1) + layer + 1
            return f"input_blocks.{place}." + {"resnets": "0", "attentions": "1", "downsamplers": "0"}[kind]
        attends = config.up_block_types[index] == "CrossAttnUpBlock2D"
        place = index * (layers + 1) + (layers if kind == "upsamplers" else layer)
        last = "2" if attends else "1"
        return f"output_blocks.{place}." + {"resnets": "0", "attentions": "1", "upsamplers": last}[kind]

    name = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", block, name)
    if name.startswith("input_blocks."):
        name = re.sub(r"^(input_blocks\.\d+\.0)\.conv(?![^.])", r"\1.op", name)
    return replace_parts(name, _UNET_ENDS)


def original_vae_name(name: str, config: VAEConfig) -> str:
    """Return the original name, without prefix, of the VAE tensor called `name` in diffusers."""
    last = len(config.block_out_channels) - 1
    name = replace_parts(name, _VAE_PARTS)
    name = re.sub(r"^encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
    # The decoder's blocks were numbered from the smallest to the largest.
    name = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", name)
    name = name.replace(".downsamplers.0.", ".downsample.").replace(".upsamplers.0.", ".upsample.")
    return name.replace(".resnets.", ".block.")


_Config = TypeVar("_Config", UNetConfig, VAEConfig, CLIPTextConfig)


def _typed(kind: type[_Config], **settings: Any) -> _Config:
    """Build a config from settings that were inferred from shapes and may therefore be anything."""
    return kind.from_dict(settings)


def _shape(tensors: Tensors, name: str, file: Path, least_axes: int = 1) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) < least_axes:
        raise UserError(
            f"{file} lacks the tensor {name}; use a complete Stable Diffusion 1.x or 2.x checkpoint."
        )
    return tensors[name].shape


def _part(tensors: Tensors, prefix: str) -> dict[str, StoredTensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _unet_config(tensors: Tensors, file: Path, sample_size: int) -> UNetConfig:
    channels: list[int] = []
    attends: list[bool] = []
    layers = first = 0
    blocks = count_layers(tensors, r"input_blocks\.(\d+)\.")
    for index in range(1, blocks + 1):
        if index < blocks and f"input_blocks.{index}.0.op.weight" not in tensors:
            continue
        # A level ends before the convolution that halves the size, or after the last block.
        layers = layers or index - 1
        name = f"input_blocks.{first + 1}.0.out_layers.3.weight"
        channels.append(_shape(tensors, name, file)[0])
        attends.append(f"input_blocks.{first + 1}.1.norm.weight" in tensors)
        first = index
    transformer = "middle_block.1"
    linear = len(_shape(tensors, f"{transformer}.proj_in.weight", file)) == 2
    return _typed(
        UNetConfig,
        sample_size=sample_size,
        in_channels=_shape(tensors, "input_blocks.0.0.weight", file, 2)[1],
        out_channels=_shape(tensors, "out.2.weight", file)[0],
        down_block_types=tuple("CrossAttnDownBlock2D" if attend else "DownBlock2D" for attend in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if attend else "UpBlock2D" for attend in attends[::-1]),
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        cross_attention_dim=_shape(tensors, f"{transformer}.transformer_blocks.0.attn2.to_k.weight", file, 2)[
            1
        ],
        attention_head_dim=tuple(width // _HEAD_SIZE for width in channels) if linear else _SD1_HEADS,
        use_linear_projection=linear,
        upcast_attention=sample_size == _SIZES["v_prediction"],
    )


def _vae_config(tensors: Tensors, file: Path, latent_size: int) -> VAEConfig:
    levels = count_layers(tensors, r"encoder\.down\.(\d+)\.")
    return _typed(
        VAEConfig,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(
            _shape(tensors, f"encoder.down.{level}.block.0.conv1.weight", file)[0] for level in range(levels)
        ),
        layers_per_block=count_layers(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=_shape(tensors, "post_quant_conv.weight", file)[0],
        sample_size=latent_size * 2 ** (levels - 1),
    )


def _text_config(tensors: Tensors, file: Path, layers: int, activation: str) -> CLIPTextConfig:
    vocabulary, width = _shape(tensors, "embeddings.token_embedding.weight", file, 2)
    return _typed(
        CLIPTextConfig,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=_shape(tensors, "encoder.layers.0.mlp.fc1.bias", file)[0],
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD_SIZE,
        max_position_embeddings=_shape(tensors, "embeddings.position_embedding.weight", file)[0],
        hidden_act=activation,
    )


def _open_clip_tensors(stored: Tensors) -> tuple[dict[str, StoredTensor], int]:
    """Return OpenCLIP's tensors by transformers' names, except the last layer, and how many layers remain."""
    layers = count_layers(stored, r"transformer\.resblocks\.(\d+)\.") - 1
    last = f"transformer.resblocks.{layers}."
    return text_tensors({name: each for name, each in stored.items() if not name.startswith(last)}), layers


def _under_new_names(
    stored: Tensors, module: nn.Module, original: Callable[[str], str], prefix: str, file: Path
) -> NetworkFiles:
    """Return the tensors of one network by diffusers' names; none may be missing or left over."""
    names = {name: original(name) for name in tensor_names(parameter_shapes(module))}
    missing = set(names.values()) - stored.keys()
    if missing:
        raise UserError(
            f"{file} lacks the tensor {prefix}{some_names(missing)}; use a complete Stable Diffusion 1.x "
            f"or 2.x checkpoint."
        )
    surplus = stored.keys() - set(names.values())
    if surplus:
        raise UserError(
            f"{file} holds the unexpected tensor {prefix}{some_names(surplus)}; use a text-to-image "
            f"checkpoint of Stable Diffusion 1.x or 2.x."
        )
    return NetworkFiles({name: stored[old] for name, old in names.items()}, file)


def _size_in_name(file: Path) -> str:
    """Tell from a 2.x model's file name what it predicts."""
    sizes = set(re.findall(r"(?<!\d)(?:512|768)(?!\d)", file.stem))
    if len(sizes) != 1:
        raise UserError(
            f"{file} does not say whether it is a 2.x model for 512 pixels, which predicts noise, or for "
            f"768, which predicts v; put the number in the file's name, or a {SCHEDULER_FILE} next to it."
        )
    return "epsilon" if sizes == {"512"} else "v_prediction"


def _said_prediction(file: Path, stored: Tensors) -> str | None:
    """Return what the trainer's notes say the model predicts; None without any."""
    for suffix in (".yaml", ".yml"):
        notes = file.with_suffix(suffix)
        if notes.is_file():
            try:
                with notes.open(encoding="utf-8", errors="replace") as opened:
                    found = _YAML.search(opened.read(_LONGEST_YAML))
            except OSError as error:
                raise UserError(f"{notes} cannot be read ({error.strerror}); make it readable.") from error
            if found:
                return "v_prediction" if found[1] == "v" else "epsilon"
    said = read_metadata(file).get(_METADATA, "").lower()
    if said in ("v", "v_prediction", "v-prediction"):
        return "v_prediction"
    if _PREDICTS_V in stored:
        return "v_prediction"
    return "epsilon" if said in ("epsilon", "eps") else None


def _scheduler(file: Path, stored: Tensors, *, second: bool) -> Mapping[str, Any]:
    config = file.parent / SCHEDULER_FILE
    if config.is_file():
        return read_json(config)
    predicts = _said_prediction(file, stored) or (_size_in_name(file) if second else "epsilon")
    zero = {"rescale_betas_zero_snr": True} if _ZERO_SNR in stored else {}
    return {**_SCHEDULE, "prediction_type": predicts, **zero}


def open_single_file(file: Path) -> ModelFiles:
    """Open a checkpoint of Stable Diffusion 1.x or 2.x in one .safetensors file.

    Args:
        file: the checkpoint.

    Returns:
        The model's files.

    Raises:
        UserError: the file is of another kind or incomplete, or its prediction type or tokenizer cannot be
            found.
    """
    stored = open_tensors(file)
    unet, vae = _part(stored, _UNET_PREFIX), _part(stored, _VAE_PREFIX)
    open_clip, clip = _part(stored, _OPEN_CLIP_PREFIX), _part(stored, _CLIP_PREFIX)
    second = bool(open_clip)
    kind = foreign_checkpoint(stored)
    if kind is not None:
        raise UserError(f"{file} is {kind}; {USE}.")
    if not (unet and vae and (open_clip or clip)):
        raise UserError(
            f"{file} is not a Stable Diffusion 1.x or 2.x checkpoint (it lacks {_UNET_PREFIX}*, "
            f"{_VAE_PREFIX}*, or both {_CLIP_PREFIX}* and {_OPEN_CLIP_PREFIX}*); use one that holds the "
            "whole model."
        )
    scheduler = _scheduler(file, stored, second=second)
    if second:
        text, layers = _open_clip_tensors(open_clip)
        activation = "gelu"
    else:
        text = rename_tensors(clip, plain_text_name)
        layers, activation = count_layers(text, r"encoder\.layers\.(\d+)\."), "quick_gelu"
    is_large = second and scheduler.get("prediction_type") == "v_prediction"
    size = _SIZES["v_prediction" if is_large else "epsilon"]
    with naming(file):
        unet_config = _unet_config(unet, file, size)
        vae_config = _vae_config(vae, file, size)
        text_config = _text_config(text, file, layers, activation)
        noise_schedule_from_config(scheduler)
    check_unet(unet_config.to_dict(), str(file))
    own_folder = file.parent / "tokenizer"
    folder = own_folder if own_folder.is_dir() else download_tokenizer(BASE_MIRROR if second else SD1_MIRROR)
    return ModelFiles(
        unet=_under_new_names(
            unet,
            UNet2DConditionModel(unet_config),
            lambda name: original_unet_name(name, unet_config),
            _UNET_PREFIX,
            file,
        ),
        vae=_under_new_names(
            vae,
            AutoencoderKL(vae_config),
            lambda name: original_vae_name(name, vae_config),
            _VAE_PREFIX,
            file,
        ),
        text_encoder=NetworkFiles(text, file),
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=text_config,
        tokenizer=load_tokenizer(folder),
        scheduler_config=scheduler,
    )
