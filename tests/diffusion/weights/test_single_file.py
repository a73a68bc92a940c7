"""Single-file checkpoints, with the tensor names of Stable Diffusion's original release."""

import json

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.unet import UNetConfig
from ge3d_jax.diffusion.networks.vae import VAEConfig
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.diffusion.weights.single_file import open_single_file, original_unet_name, original_vae_name
from tests.single_files import FIRST, SECOND, original_tensors, write_single_file

SD2_UNET = UNetConfig(
    attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
SD_VAE = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("conv_in.weight", "input_blocks.0.0.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("down_blocks.0.resnets.0.time_emb_proj.weight", "input_blocks.1.0.emb_layers.1.weight"),
        ("down_blocks.0.attentions.1.proj_in.weight", "input_blocks.2.1.proj_in.weight"),
        ("down_blocks.0.downsamplers.0.conv.weight", "input_blocks.3.0.op.weight"),
        ("down_blocks.1.resnets.0.conv_shortcut.bias", "input_blocks.4.0.skip_connection.bias"),
        (
            "down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_out.0.weight",
            "input_blocks.7.1.transformer_blocks.0.attn2.to_out.0.weight",
        ),
        ("down_blocks.3.resnets.1.norm2.weight", "input_blocks.11.0.out_layers.0.weight"),
        ("mid_block.resnets.0.norm1.weight", "middle_block.0.in_layers.0.weight"),
        ("mid_block.attentions.0.norm.bias", "middle_block.1.norm.bias"),
        ("mid_block.resnets.1.conv2.weight", "middle_block.2.out_layers.3.weight"),
        ("up_blocks.0.resnets.2.conv1.weight", "output_blocks.2.0.in_layers.2.weight"),
        # Without a preceding attention module, the convolution is the second one.
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        (
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight",
            "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight",
        ),
        ("conv_norm_out.weight", "out.0.weight"),
        ("conv_out.bias", "out.2.bias"),
    ],
)
def test_unet_names_of_stable_diffusion_2(name, original):
    assert original_unet_name(name, SD2_UNET) == original


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("encoder.conv_in.weight", "encoder.conv_in.weight"),
        (
            "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
            "encoder.down.1.block.0.nin_shortcut.weight",
        ),
        ("encoder.down_blocks.2.downsamplers.0.conv.bias", "encoder.down.2.downsample.conv.bias"),
        ("encoder.mid_block.resnets.1.norm1.weight", "encoder.mid.block_2.norm1.weight"),
        ("decoder.mid_block.attentions.0.to_q.weight", "decoder.mid.attn_1.q.weight"),
        ("decoder.mid_block.attentions.0.to_out.0.bias", "decoder.mid.attn_1.proj_out.bias"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("decoder.up_blocks.0.resnets.2.conv2.weight", "decoder.up.3.block.2.conv2.weight"),
        ("decoder.up_blocks.2.upsamplers.0.conv.weight", "decoder.up.1.upsample.conv.weight"),
        ("encoder.conv_norm_out.bias", "encoder.norm_out.bias"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_vae_names(name, original):
    assert original_vae_name(name, SD_VAE) == original


@pytest.fixture(scope="module", params=[FIRST, SECOND], ids=["1.x", "2.x"])
def loaded(request, tmp_path_factory):
    """The model family, the model written to a file, and the model read back."""
    folder = tmp_path_factory.mktemp(request.param.name)
    model = write_single_file(folder / "any_512.safetensors", request.param)
    return request.param, model, load_model(folder / "any_512.safetensors")


def test_returns_the_weights(loaded):
    _, model, result = loaded
    for name in ("unet_params", "vae_params", "text_params"):
        chex.assert_trees_all_equal(getattr(result, name), getattr(model, name))


def test_infers_the_dimensions(loaded):
    family, model, result = loaded
    assert result.text_encoder.config == model.text_encoder.config
    assert result.vae.config == model.vae.config
    # No tensor tells it; both families have the same.
    assert result.scaling_factor == 0.18215
    unet, expected = result.unet.config, model.unet.config
    assert unet.heads == expected.heads
    same = {"attention_head_dim": expected.attention_head_dim}
    assert {**unet.to_dict(), **same} == {**expected.to_dict(), **same}
    assert result.text_encoder.config.hidden_act == family.activation
    assert result.schedule.prediction_type == "epsilon"
    chex.assert_trees_all_close(result.schedule, model.schedule)


def test_the_file_name_decides_what_a_2_x_model_predicts(tmp_path):
    write_single_file(tmp_path / "v2-1_768-ema.safetensors", SECOND)
    model = load_model(tmp_path / "v2-1_768-ema.safetensors")
    assert model.schedule.prediction_type == "v_prediction"
    assert model.unet.config.sample_size == 96 and model.unet.config.upcast_attention
    (tmp_path / "v2-1_768-ema.safetensors").rename(tmp_path / "mine1768.safetensors")
    with pytest.raises(UserError, match="512.*768.*scheduler_config.json next to it"):
        load_model(tmp_path / "mine1768.safetensors")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(
        json.dumps({"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01})
    )
    model = load_model(tmp_path / "mine1768.safetensors")
    assert model.schedule.prediction_type == "epsilon"
    assert float(1 - model.schedule.alphas_cumprod[0]) == pytest.approx(0.001, rel=1e-4)


@pytest.fixture
def tensors(tmp_path):
    """The tensors of a 2.x file, for tests that damage them; its folder has a tokenizer."""
    write_single_file(tmp_path / "first_512.safetensors", SECOND)
    return original_tensors(SECOND)


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.output_blocks.1.0.in_layers.2.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.mid.attn_1.q.bias",
        "first_stage_model.post_quant_conv.weight",
    ],
)
def test_a_missing_tensor_is_named_as_the_file_would(tensors, tmp_path, name):
    del tensors[name]
    save_file(tensors, tmp_path / "broken_512.safetensors")
    with pytest.raises(UserError, match=name.split(".", 1)[1].removeprefix("diffusion_model.")):
        load_model(tmp_path / "broken_512.safetensors")


def test_an_unexpected_tensor_is_named(tensors, tmp_path):
    tensors["model.diffusion_model.label_emb.0.0.weight"] = np.zeros((2, 2), np.float32)
    save_file(tensors, tmp_path / "broken_512.safetensors")
    with pytest.raises(UserError, match="model.diffusion_model.label_emb.0.0.weight"):
        load_model(tmp_path / "broken_512.safetensors")


def test_tensors_outside_the_three_networks_are_ignored(tensors, tmp_path):
    extra = {"model_ema.decay": np.ones(1, np.float32), "alphas_cumprod": np.ones(1000, np.float32)}
    save_file({**tensors, **extra}, tmp_path / "more_512.safetensors")
    more, first = (load_model(tmp_path / f"{name}_512.safetensors") for name in ("more", "first"))
    assert jax.tree.all(jax.tree.map(np.array_equal, more.unet_params, first.unet_params))


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_half_a_model_is_refused(tensors, tmp_path, prefix):
    save_file(
        {name: value for name, value in tensors.items() if not name.startswith(prefix)},
        tmp_path / "half_512.safetensors",
    )
    with pytest.raises(UserError, match="not a Stable Diffusion 1.x or 2.x checkpoint"):
        load_model(tmp_path / "half_512.safetensors")


def test_an_inpainting_model_is_refused(tensors, tmp_path):
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[name] = np.zeros((tensors[name].shape[0], 9, 3, 3), np.float32)
    save_file(tensors, tmp_path / "inpainting_512.safetensors")
    with pytest.raises(UserError, match="text-to-image model"):
        load_model(tmp_path / "inpainting_512.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".CKPT"])
def test_a_pickled_file_is_refused_with_the_command_that_converts_it(tmp_path, suffix):
    (tmp_path / f"v1-5{suffix}").write_bytes(b"\x80")
    with pytest.raises(UserError, match="python -c .*v1-5.safetensors"):
        load_model(tmp_path / f"v1-5{suffix}")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="model.gguf is not a .safetensors file"):
        load_model(tmp_path / "model.gguf")
    for name in ("model.safetensors", "model.SafeTensors"):
        (tmp_path / name).write_bytes(b"\x05")
        with pytest.raises(UserError, match=f"{name} is not a readable"):
            load_model(tmp_path / name)


NOTES = "model:\n  params:\n    parameterization: {}\n    linear_start: 0.00085\n"


@pytest.mark.parametrize(
    ("notes", "metadata", "marks", "predicts"),
    [
        (None, None, (), "epsilon"),
        ('"v"', None, (), "v_prediction"),
        ("v", None, (), "v_prediction"),
        ("'eps'", {"modelspec.prediction_type": "v"}, ("v_pred",), "epsilon"),
        (None, {"modelspec.prediction_type": "v"}, (), "v_prediction"),
        (None, {"modelspec.prediction_type": "epsilon"}, ("v_pred",), "v_prediction"),
        (None, None, ("v_pred", "ztsnr"), "v_prediction"),
    ],
)
def test_what_a_1_x_file_predicts_is_said_beside_it_or_in_it(tmp_path, notes, metadata, marks, predicts):
    file = tmp_path / "fluff.safetensors"
    write_single_file(file, FIRST)
    tensors = original_tensors(FIRST) | {mark: np.zeros(0, np.float32) for mark in marks}
    save_file(tensors, file, metadata)
    if notes is not None:
        (tmp_path / "fluff.yaml").write_text(NOTES.format(notes))
    files = open_single_file(file)
    assert files.scheduler_config["prediction_type"] == predicts
    assert files.unet_config.sample_size == 64 and not files.unet_config.upcast_attention
    assert ("rescale_betas_zero_snr" in files.scheduler_config) == ("ztsnr" in marks)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["conditioner.embedders.0.transformer.x", "model.diffusion_model.out.2.weight"], "is SDXL"),
        (["model.diffusion_model.joint_blocks.0.x"], "is Stable Diffusion 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "is FLUX"),
        (["model.diffusion_model.time_embed.cond_proj.weight"], "is LCM"),
        (["lora_unet_x.lora_up.weight"], "is a LoRA .pass it as one"),
        (["unet.x.to_q.lora_A.weight"], "is a LoRA"),
        (["emb_params"], "is a textual inversion"),
        (["down_blocks.0.resnets.0.conv1.weight"], "a single network in diffusers' layout"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, names, says):
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=says):
        open_single_file(tmp_path / "other.safetensors")


def test_shapes_that_no_model_has_are_named(tensors, tmp_path):
    tensors["cond_stage_model.model.token_embedding.weight"] = np.zeros((5, 3), np.float32)
    save_file(tensors, tmp_path / "odd_512.safetensors")
    with pytest.raises(UserError, match=r"odd_512.safetensors: text encoder config: num_attention_heads = 0"):
        open_single_file(tmp_path / "odd_512.safetensors")
