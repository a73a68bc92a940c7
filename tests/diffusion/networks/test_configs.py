"""Reading config.json: diffusers' defaults, and no setting that is silently ignored."""

import json

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.text_encoder import CLIPTextConfig, CLIPTextModel
from ge3d_jax.diffusion.networks.unet import UNet2DConditionModel, UNetConfig
from ge3d_jax.diffusion.networks.vae import AutoencoderKL, VAEConfig
from ge3d_jax.diffusion.weights.parameters import parameter_shapes, tensor_names
from tests.reference_models import TEXT_CONFIGS, UNET_CONFIGS, VAE_CONFIGS

# unet/config.json of Stable Diffusion 2.1 base.
STABLE_DIFFUSION_2_1 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.8.0",
    "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20],
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 1024,
    "down_block_types": [
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "CrossAttnDownBlock2D",
        "DownBlock2D",
    ],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}


def test_reads_stable_diffusion_2_1():
    config = UNetConfig.from_dict(STABLE_DIFFUSION_2_1)
    assert config.heads == (5, 10, 20, 20)
    assert config.block_out_channels == (320, 640, 1280, 1280)
    assert config.transformer_layers_per_block == 1


def test_a_single_number_of_heads_applies_to_all_blocks():
    assert UNetConfig.from_dict(UNET_CONFIGS["sd1"]).heads == (8, 8)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((UNetConfig, config) for config in UNET_CONFIGS.values()),
        *((VAEConfig, config) for config in VAE_CONFIGS.values()),
        *((CLIPTextConfig, config) for config in TEXT_CONFIGS.values()),
    ],
)
def test_writing_and_reading_give_the_same_config(kind, config):
    read = kind.from_dict(config)
    assert kind.from_dict(json.loads(json.dumps(read.to_dict()))) == read
    assert isinstance(hash(read), int)


@pytest.mark.parametrize(
    ("kind", "base", "change"),
    [
        (UNetConfig, UNET_CONFIGS["sd2"], {"act_fn": "gelu"}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"class_embed_type": "timestep"}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"center_input_sample": True}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"only_cross_attention": True}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"only_cross_attention": [False, True, False, False]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"resnet_time_scale_shift": "scale_shift"}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"num_attention_heads": 4}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"down_block_types": ["AttnDownBlock2D"] * 4}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"up_block_types": ["UpBlock2D"]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": [1, 2, 2, 2]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"attention_head_dim": [1, 2]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"attention_head_dim": [3, 2, 4, 4]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"norm_num_groups": 7}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"a_setting_of_tomorrow": 3}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"shift_factor": 0.1}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"use_quant_conv": False}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"mid_block_add_attention": False}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"norm_num_groups": 16}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"hidden_act": "relu"}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"num_attention_heads": 5}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"model_type": "t5"}),
    ],
)
def test_unsupported_settings_are_named(kind, base, change):
    (name, value), *_ = change.items()
    with pytest.raises(UserError, match=name) as error:
        kind.from_dict({**base, **change})
    assert str(value if not isinstance(value, list) else value[0]) in str(error.value)


@pytest.mark.parametrize(
    ("kind", "base", "change"),
    [
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": 10**30}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": "2"}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": True}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": float("nan")}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": float("inf")}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": 0}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"layers_per_block": 1.5}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"transformer_layers_per_block": [1, 2, 10, 10]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"block_out_channels": 8}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"block_out_channels": []}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"block_out_channels": [8, 16, 24, -24]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"block_out_channels": [8, 16, 24, 2**40]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"block_out_channels": [8] * 9}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"attention_head_dim": 0}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"attention_head_dim": {"all": 8}}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"down_block_types": [["DownBlock2D"]] * 4}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"norm_num_groups": 0}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"norm_eps": float("nan")}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"norm_eps": -1.0}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"freq_shift": 4}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"flip_sin_to_cos": 1}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"sample_size": [64, 32]}),
        (UNetConfig, UNET_CONFIGS["sd2"], {"sample_size": 10**4}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"scaling_factor": 0}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"scaling_factor": "0.18215"}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"in_channels": 4}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"latent_channels": 10**9}),
        (VAEConfig, VAE_CONFIGS["sd2"], {"block_out_channels": [8, 16, 24, 24.5]}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"num_attention_heads": 0}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"vocab_size": 10**12}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"max_position_embeddings": 1}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"hidden_act": ["gelu"]}),
        (CLIPTextConfig, TEXT_CONFIGS["gelu"], {"layer_norm_eps": None, "hidden_size": "24"}),
    ],
)
def test_settings_of_other_types_and_out_of_bounds_are_named(kind, base, change):
    name = list(change)[-1]
    with pytest.raises(UserError, match=f"{name}.* must ") as error:
        kind.from_dict({**base, **change})
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_numbers_are_typed_and_lists_of_one_value_are_that_value():
    base = UNetConfig.from_dict(UNET_CONFIGS["sd2"])
    written = {
        "layers_per_block": [2, 2, 2, 2],
        "transformer_layers_per_block": [1.0] * 4,
        "cross_attention_dim": [20] * 4,
        "sample_size": [16, 16],
        "norm_num_groups": 4.0,
        "norm_eps": None,
        "only_cross_attention": [False] * 4,
    }
    read = UNetConfig.from_dict({**UNET_CONFIGS["sd2"], **written})
    assert read == base and isinstance(read.norm_num_groups, int)


@pytest.mark.parametrize(
    ("kind", "module", "settings"),
    [
        (UNetConfig, UNet2DConditionModel, UNET_CONFIGS["sd1"]),
        (VAEConfig, AutoencoderKL, VAE_CONFIGS["small"]),
        (CLIPTextConfig, CLIPTextModel, TEXT_CONFIGS["gelu"]),
    ],
)
def test_a_network_has_at_least_the_tensors_that_its_depth_says(kind, module, settings):
    config = kind.from_dict(settings)
    count = len(tensor_names(parameter_shapes(module(config))))
    assert 0.6 * count <= config.least_tensors <= count


def test_settings_that_are_off_are_accepted():
    off = {
        "encoder_hid_dim": None,
        "dual_cross_attention": False,
        "_name_or_path": "elsewhere",
        "dropout": 0.0,
    }
    assert UNetConfig.from_dict({**UNET_CONFIGS["sd2"], **off}) == UNetConfig.from_dict(UNET_CONFIGS["sd2"])
