"""Results of diffusers and transformers (PyTorch, CPU, float32) for the cases of `reference_models.py`."""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from transformers import CLIPTextConfig, CLIPTextModel

from tests.reference_models import (
    TEXT_CONFIGS,
    UNET_CONFIGS,
    VAE_CONFIGS,
    Outputs,
    random_array,
    random_tensor,
    text_inputs,
    unet_inputs,
    vae_inputs,
)

HIDDEN = (2, 8, 6, 4)


def fill(module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """Give `module` its random weights; `prefix` is removed from the names that seed them."""
    state = {
        name: torch.from_numpy(random_tensor(name.removeprefix(prefix), tuple(tensor.shape)))
        for name, tensor in module.state_dict().items()
        if not name.endswith("position_ids")
    }
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing)
    return module.eval()


def tensor(name: str, *shape: int) -> torch.Tensor:
    """The random input `name`."""
    return torch.from_numpy(random_array(name, shape))


def channels_last(values: torch.Tensor) -> np.ndarray:
    """(B, C, h, w) -> (B, h, w, C)."""
    return values.permute(0, 2, 3, 1).numpy()


def _unet(name: str) -> Outputs:
    latents, times, text = (torch.from_numpy(values) for values in unet_inputs(UNET_CONFIGS[name]))
    model = fill(UNet2DConditionModel(**UNET_CONFIGS[name]))
    return {"output": channels_last(model(latents, times, text).sample)}


def _vae(name: str) -> Outputs:
    images, latents = (torch.from_numpy(values) for values in vae_inputs(VAE_CONFIGS[name]))
    model = fill(AutoencoderKL(**VAE_CONFIGS[name]))
    posterior = model.encode(images).latent_dist
    return {
        "mean": channels_last(posterior.mean),
        "log_variance": channels_last(posterior.logvar),
        "decoded": channels_last(model.decode(latents).sample),
    }


def _text(name: str) -> Outputs:
    model = fill(CLIPTextModel(CLIPTextConfig(**TEXT_CONFIGS[name])), prefix="text_model.")
    ids = torch.from_numpy(text_inputs(TEXT_CONFIGS[name])).long()
    return {"output": model(ids).last_hidden_state.numpy()}


def _resnet(channels: int, *, timed: bool) -> Outputs:
    width = 12 if timed else None
    block = ResnetBlock2D(in_channels=8, out_channels=channels, temb_channels=width, groups=4, eps=1e-5)
    return {
        "output": channels_last(
            fill(block)(tensor("hidden", *HIDDEN), tensor("time", 2, 12) if timed else None)
        )
    }


def _transformer(linear: bool) -> Outputs:
    model = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=8,
        num_layers=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        use_linear_projection=linear,
    )
    output = fill(model)(tensor("hidden", *HIDDEN), encoder_hidden_states=tensor("text", 2, 5, 12)).sample
    return {"output": channels_last(output)}


def _timestep(flip: bool, shift: int, channels: int) -> Outputs:
    times = torch.tensor([0, 1, 20, 999])
    waves = get_timestep_embedding(times, channels, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    return {"sinusoids": waves.numpy(), "output": fill(TimestepEmbedding(channels, 24))(waves).numpy()}


def _pixels() -> Outputs:
    attention = Attention(
        8,
        heads=1,
        dim_head=8,
        eps=1e-6,
        norm_num_groups=4,
        residual_connection=True,
        bias=True,
        upcast_softmax=True,
        _from_deprecated_attn_block=True,
    )
    return {"output": channels_last(fill(attention)(tensor("hidden", *HIDDEN)))}


def _tokens(module: torch.nn.Module, text: torch.Tensor | None = None) -> Outputs:
    inputs = () if text is None else (text,)
    return {"output": fill(module)(tensor("tokens", 2, 7, 8), *inputs).numpy()}


def _transformer_block() -> Outputs:
    block = fill(BasicTransformerBlock(8, 2, 4, cross_attention_dim=12))
    output = block(tensor("tokens", 2, 7, 8), encoder_hidden_states=tensor("text", 2, 5, 12))
    return {"output": output.numpy()}


def _image(module: torch.nn.Module) -> Outputs:
    return {"output": channels_last(fill(module)(tensor("hidden", *HIDDEN)))}


REFERENCES: dict[str, Callable[[], Outputs]] = {
    **{f"unet {name}": lambda name=name: _unet(name) for name in UNET_CONFIGS},
    **{f"vae {name}": lambda name=name: _vae(name) for name in VAE_CONFIGS},
    **{f"text encoder {name}": lambda name=name: _text(name) for name in TEXT_CONFIGS},
    "resnet same channels": lambda: _resnet(8, timed=True),
    "resnet more channels": lambda: _resnet(12, timed=True),
    "resnet without time": lambda: _resnet(12, timed=False),
    "attention to itself": lambda: _tokens(Attention(8, heads=2, dim_head=4)),
    "attention to text": lambda: _tokens(
        Attention(8, cross_attention_dim=12, heads=2, dim_head=4), tensor("text", 2, 5, 12)
    ),
    "attention of pixels": _pixels,
    "feed-forward": lambda: _tokens(FeedForward(8, activation_fn="geglu")),
    "transformer block": _transformer_block,
    "transformer with linear projections": lambda: _transformer(True),
    "transformer with convolutions": lambda: _transformer(False),
    "downsample in the unet": lambda: _image(
        Downsample2D(8, use_conv=True, out_channels=12, padding=1, name="op")
    ),
    "downsample in the vae": lambda: _image(
        Downsample2D(8, use_conv=True, out_channels=12, padding=0, name="op")
    ),
    "upsample": lambda: _image(Upsample2D(8, use_conv=True, out_channels=12)),
    "timestep, cosines first": lambda: _timestep(True, 0, 16),
    "timestep, sines first": lambda: _timestep(False, 1, 16),
    "timestep, odd": lambda: _timestep(True, 0, 9),
}


def reference(case: str) -> Outputs:
    """The reference's outputs for a case of `reference_models.CASES`, in our layout."""
    with torch.no_grad():
        return REFERENCES[case]()
