"""Small random networks and inputs, reproducible anywhere, and the results of our code for them.

Every tensor is drawn by NumPy with a seed derived from its name in diffusers' files, so that the PyTorch
reference (`reference_torch.py`) and our modules get the same numbers without stored weights. `CASES` names
the comparisons; `tests/write_golden.py` stores the reference's results for them.
"""

import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ge3d_jax.diffusion.networks import blocks, vae
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.pipeline import StableDiffusion, make_model
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.parameters import parameter_shapes, read_parameters, tensor_name
from ge3d_jax.diffusion.weights.tensor_files import open_tensors

Outputs = dict[str, np.ndarray]

GOLDEN_FILE = Path(__file__).parent / "golden" / "diffusion.npz"
# Maximum allowed difference, relative to the reference's largest value.
TOLERANCE = 1e-4

UNET_CONFIGS: dict[str, dict[str, Any]] = {
    # Like Stable Diffusion 2.1: linear projections, and a number of heads for each block.
    "sd2": {
        "sample_size": 16,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [8, 16, 24, 24],
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "cross_attention_dim": 20,
        "attention_head_dim": [1, 2, 4, 4],
        "use_linear_projection": True,
    },
    # Like Stable Diffusion 1.5: convolutional projections, and a single number of heads.
    "sd1": {
        "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 12,
        "attention_head_dim": 8,
    },
    # Non-default values of the remaining settings, and the bundled model's order of blocks.
    "other": {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 5,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
        "norm_num_groups": 2,
        "norm_eps": 1e-3,
        "cross_attention_dim": 12,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}
VAE_CONFIGS: dict[str, dict[str, Any]] = {
    "sd2": {
        "block_out_channels": [8, 16, 24, 24],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "sample_size": 32,
    },
    "small": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "latent_channels": 3,
        "norm_num_groups": 8,
        "sample_size": 16,
        "scaling_factor": 0.5,
    },
}
TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    name: {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 11,
        "hidden_act": name,
    }
    for name in ("gelu", "quick_gelu")
}

SCHEDULER_CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
TINY_WORDS = ("a", "red", "blue", "robot", "mushroom", "with", "the", "front", "view", "of")


def random_array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers, reproducible by name."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight for the tensor `name` of diffusers' shape `shape`, scaled to keep activations near one."""
    values = random_array(name, shape)
    if len(shape) == 1:
        return 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
    return values / np.float32(np.sqrt(np.prod(shape[1:])))


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The PyTorch shape of a kernel: outputs first, then inputs, then the rest."""
    return (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else shape


def random_tensors(shapes: Any) -> dict[str, np.ndarray]:
    """The diffusers tensors of a network whose parameters have these shapes here."""
    tensors = {}
    for path, leaf in flatten_dict(shapes).items():
        name = tensor_name(path)
        shape = leaf.shape if path[-1] == "embedding" else torch_shape(leaf.shape)
        tensors[name] = random_tensor(name, shape)
    return tensors


def random_parameters(shapes: Any) -> dict[str, Any]:
    """The parameter tree of the same tensors, read from a file by the reader under test."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tensors.safetensors"
        save_file(random_tensors(shapes), file)
        return read_parameters(open_tensors(file), shapes, file)


def channels_last(name: str, *shape: int) -> np.ndarray:
    """Input `name`, drawn in PyTorch's axis order (B, C, h, w), as (B, h, w, C)."""
    return random_array(name, shape).transpose(0, 2, 3, 1)


def run_module(module: nn.Module, *inputs: Any) -> np.ndarray:
    """The outputs of `module` with random weights for `inputs`."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return np.asarray(jax.jit(module.apply)({"params": random_parameters(shapes)}, *inputs))


def unet_inputs(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents (B, C, h, w) higher than wide, two times, text (B, L, D)."""
    size = config["sample_size"]
    latents = random_array("latents", (2, config.get("in_channels", 4), size, size // 2))
    return latents, np.array([7, 801]), random_array("text", (2, 5, config["cross_attention_dim"]))


def _unet(name: str) -> Outputs:
    config = UNET_CONFIGS[name]
    latents, times, text = unet_inputs(config)
    module = UNet2DConditionModel(UNetConfig.from_dict(config))
    parameters = random_parameters(parameter_shapes(module))
    output = jax.jit(module.apply)({"params": parameters}, latents.transpose(0, 2, 3, 1), times, text)
    return {"output": np.asarray(output)}


def vae_inputs(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 3, H, W) wider than high, and unscaled latents (B, C, h, w) for the decoder."""
    size, halvings = config["sample_size"], len(config["block_out_channels"]) - 1
    images = np.tanh(random_array("images", (2, 3, size // 2, size)))
    latents = (2, config.get("latent_channels", 4), size // 2 >> halvings, size >> halvings)
    return images, random_array("vae latents", latents)


def _vae(name: str) -> Outputs:
    config = VAE_CONFIGS[name]
    images, latents = (values.transpose(0, 2, 3, 1) for values in vae_inputs(config))
    module = AutoencoderKL(VAEConfig.from_dict(config))
    variables = {"params": random_parameters(parameter_shapes(module))}

    @jax.jit
    def run(variables: Any, images: jax.Array, latents: jax.Array) -> dict[str, jax.Array]:
        mean, log_variance = module.apply(variables, images, method="encode")
        decoded = module.apply(variables, latents, method="decode")
        return {"mean": mean, "log_variance": log_variance, "decoded": decoded}

    return {name: np.asarray(value) for name, value in run(variables, images, latents).items()}


def text_inputs(config: dict[str, Any]) -> np.ndarray:
    """Token ids (B, L)."""
    shape = (2, config["max_position_embeddings"])
    return np.random.default_rng(5).integers(0, config["vocab_size"], shape).astype(np.int32)


def _text(name: str) -> Outputs:
    config = TEXT_CONFIGS[name]
    module = CLIPTextModel(CLIPTextConfig.from_dict(config))
    parameters = random_parameters(parameter_shapes(module))
    return {"output": np.asarray(jax.jit(module.apply)({"params": parameters}, text_inputs(config)))}


def _resnet(channels: int, *, timed: bool) -> Outputs:
    hidden = channels_last("hidden", 2, 8, 6, 4)
    module = blocks.ResnetBlock2D(channels, groups=4, epsilon=1e-5)
    time = (random_array("time", (2, 12)),) if timed else ()
    return {"output": run_module(module, hidden, *time)}


def _transformer(linear: bool) -> Outputs:
    module = blocks.Transformer2DModel(heads=2, groups=4, depth=1, linear_projection=linear)
    return {
        "output": run_module(module, channels_last("hidden", 2, 8, 6, 4), random_array("text", (2, 5, 12)))
    }


def _timestep(flip: bool, shift: int, channels: int) -> Outputs:
    times = np.array([0, 1, 20, 999])
    waves = blocks.timestep_embedding(jnp.asarray(times), channels, flip_sin_to_cos=flip, freq_shift=shift)
    return {"sinusoids": np.asarray(waves), "output": run_module(blocks.TimestepEmbedding(24), waves)}


CASES: dict[str, Callable[[], Outputs]] = {
    **{f"unet {name}": lambda name=name: _unet(name) for name in UNET_CONFIGS},
    **{f"vae {name}": lambda name=name: _vae(name) for name in VAE_CONFIGS},
    **{f"text encoder {name}": lambda name=name: _text(name) for name in TEXT_CONFIGS},
    "resnet same channels": lambda: _resnet(8, timed=True),
    "resnet more channels": lambda: _resnet(12, timed=True),
    "resnet without time": lambda: _resnet(12, timed=False),
    "attention to itself": lambda: {
        "output": run_module(blocks.Attention(2), *[random_array("tokens", (2, 7, 8))] * 2)
    },
    "attention to text": lambda: {
        "output": run_module(
            blocks.Attention(2), random_array("tokens", (2, 7, 8)), random_array("text", (2, 5, 12))
        )
    },
    "attention of pixels": lambda: {
        "output": run_module(vae.PixelAttention(groups=4), channels_last("hidden", 2, 8, 6, 4))
    },
    "feed-forward": lambda: {"output": run_module(blocks.FeedForward(), random_array("tokens", (2, 7, 8)))},
    "transformer block": lambda: {
        "output": run_module(
            blocks.BasicTransformerBlock(2),
            random_array("tokens", (2, 7, 8)),
            random_array("text", (2, 5, 12)),
        )
    },
    "transformer with linear projections": lambda: _transformer(True),
    "transformer with convolutions": lambda: _transformer(False),
    "downsample in the unet": lambda: {
        "output": run_module(blocks.Downsample2D(12, (1, 1)), channels_last("hidden", 2, 8, 6, 4))
    },
    "downsample in the vae": lambda: {
        "output": run_module(blocks.Downsample2D(12, (0, 1)), channels_last("hidden", 2, 8, 6, 4))
    },
    "upsample": lambda: {"output": run_module(blocks.Upsample2D(12), channels_last("hidden", 2, 8, 6, 4))},
    "timestep, cosines first": lambda: _timestep(True, 0, 16),
    "timestep, sines first": lambda: _timestep(False, 1, 16),
    "timestep, odd": lambda: _timestep(True, 0, 9),
}


def relative_difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """‖ours − reference‖∞ / ‖reference‖∞."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def tiny_model(folder: Path, prediction_type: str = "epsilon") -> StableDiffusion:
    """A complete random model for 16-pixel images; its tokenizer's files are written to `folder`."""
    tokenizer = build_tokenizer(TINY_WORDS, folder, max_length=12)
    unet_config = UNetConfig.from_dict({**UNET_CONFIGS["sd1"], "use_linear_projection": True})
    vae_config = VAEConfig.from_dict({**VAE_CONFIGS["small"], "latent_channels": 4, "scaling_factor": 0.7})
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=unet_config.cross_attention_dim,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        hidden_act="gelu",
    )
    modules = (UNet2DConditionModel(unet_config), AutoencoderKL(vae_config), CLIPTextModel(text_config))
    unet_params, vae_params, text_params = (random_parameters(parameter_shapes(module)) for module in modules)
    return make_model(
        unet_params=unet_params,
        vae_params=vae_params,
        text_params=text_params,
        unet_config=unet_config,
        vae_config=vae_config,
        text_config=text_config,
        tokenizer=tokenizer,
        scheduler_config={**SCHEDULER_CONFIG, "prediction_type": prediction_type},
    )
