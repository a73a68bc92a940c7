"""Original names, LoRA and textual inversion compared with diffusers; commands that convert old files."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import single_file_utils
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.pipeline import encode_text, predict_epsilon
from ge3d_jax.diffusion.weights.checkpoint import load_model, save_model
from tests.reference_models import TOLERANCE, random_array, relative_difference, tiny_model
from tests.single_files import (
    FIRST,
    SECOND,
    diffusers_tensors,
    family_model,
    original_tensors,
    write_single_file,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model's folder."""
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder / "model", tiny_model(folder / "words"))
    return folder / "model"


@pytest.fixture
def pipeline(folder):
    """The same model in diffusers."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _text(pipeline, prompt):
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, "cpu", 1, False)[0].numpy()


def _noise(pipeline, text):
    """The UNet's output for random latents, channels last."""
    latents = torch.from_numpy(random_array("latents", (1, 4, 8, 8)))
    with torch.no_grad():
        return pipeline.unet(latents, 500, torch.from_numpy(text)).sample.permute(0, 2, 3, 1).numpy()


def _our_noise(model, text):
    latents = random_array("latents", (1, 4, 8, 8)).transpose(0, 2, 3, 1)
    return np.asarray(predict_epsilon(model, latents, 500, text))


@pytest.mark.parametrize("family", [FIRST, SECOND], ids=["1.x", "2.x"])
def test_original_names_are_converted_as_diffusers_does(tmp_path, family):
    write_single_file(tmp_path / "any_512.safetensors", family)
    model = load_model(tmp_path / "any_512.safetensors")
    checkpoint = load_file(tmp_path / "any_512.safetensors")
    theirs = {
        "unet_params": single_file_utils.convert_ldm_unet_checkpoint(
            dict(checkpoint), model.unet.config.to_dict()
        ),
        "vae_params": single_file_utils.convert_ldm_vae_checkpoint(
            dict(checkpoint), model.vae.config.to_dict()
        ),
    }
    for name, expected in theirs.items():
        ours = diffusers_tensors(getattr(model, name))
        assert ours.keys() == expected.keys()
        for key, tensor in expected.items():
            np.testing.assert_array_equal(ours[key].reshape(tensor.shape), tensor.numpy(), err_msg=key)


def test_open_clip_is_converted_as_diffusers_does():
    tensors = {name: torch.tensor(value) for name, value in original_tensors(SECOND).items()}
    model = family_model(SECOND)
    text_model = CLIPTextModel(CLIPTextConfig(**model.text_encoder.config.to_dict()))
    expected = single_file_utils.convert_open_clip_checkpoint(
        text_model, tensors, prefix="cond_stage_model.model."
    )
    ours = diffusers_tensors(model.text_params)
    theirs = {name.removeprefix("text_model."): value for name, value in expected.items()}
    theirs = {name: value for name, value in theirs.items() if name in ours}
    assert len(theirs) > 30
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy(), err_msg=name)


UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (16, 16),
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v": (16, 12),
}
# diffusers recognizes a file's kind by the attention's output projection, so there must be one.
TEXT = {"encoder.layers.1.self_attn.q_proj": (12, 12), "encoder.layers.1.self_attn.out_proj": (12, 12)}


def _lora(unet_name, text_name, down, up, *, alpha, convolution=None):
    """A rank-2 LoRA for some linear layers, and one convolution that keeps 16 channels."""
    tensors = {}
    shapes = {unet_name(name): shape for name, shape in UNET.items()}
    shapes |= {text_name(name): shape for name, shape in TEXT.items()}
    for name, (outputs, inputs) in shapes.items():
        tensors[name + down] = 0.3 * random_array(f"{name} down", (2, inputs))
        tensors[name + up] = 0.3 * random_array(f"{name} up", (outputs, 2))
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    if convolution is not None:
        name = unet_name(convolution)
        tensors[name + down] = 0.1 * random_array("convolution down", (2, 16, 3, 3))
        tensors[name + up] = 0.1 * random_array("convolution up", (16, 2, 1, 1))
        if alpha is not None:
            tensors[f"{name}.alpha"] = np.array(alpha, np.float32)
    return tensors


def _kohya(name):
    return f"lora_unet_{name.replace('.', '_')}"


def _kohya_text(name):
    return f"lora_te_text_model_{name.replace('.', '_')}"


@pytest.mark.parametrize(
    "tensors",
    [
        _lora(
            "unet.{}".format,
            "text_encoder.text_model.{}".format,
            ".lora_A.weight",
            ".lora_B.weight",
            alpha=None,
        ),
        _lora(
            "unet.{}".format,
            "text_encoder.text_model.{}".format,
            ".lora_A.weight",
            ".lora_B.weight",
            alpha=None,
            convolution="down_blocks.0.resnets.0.conv1",
        ),
        _lora(_kohya, _kohya_text, ".lora_down.weight", ".lora_up.weight", alpha=1.0),
        _lora(
            _kohya,
            _kohya_text,
            ".lora_down.weight",
            ".lora_up.weight",
            alpha=3.0,
            convolution="down_blocks.0.resnets.0.conv1",
        ),
    ],
    ids=["peft", "peft with a convolution", "kohya", "kohya with a convolution"],
)
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_lora_changes_the_model_as_in_diffusers(folder, pipeline, tmp_path, tensors, strength):
    prompt = "a red mushroom"
    plain = _noise(pipeline, _text(pipeline, prompt))
    save_file(tensors, tmp_path / "lora.safetensors", metadata={"format": "pt"})
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    pipeline.fuse_lora(lora_scale=strength)
    model = load_model(folder, loras=[(tmp_path / "lora.safetensors", strength)])
    theirs, ours = _text(pipeline, prompt), np.asarray(encode_text(model, [prompt]))
    assert relative_difference(ours, theirs) <= TOLERANCE
    theirs = _noise(pipeline, theirs)
    assert relative_difference(plain, theirs) > 0.01
    assert relative_difference(_our_noise(model, ours), theirs) <= TOLERANCE


def test_textual_inversion_as_in_diffusers(folder, pipeline, tmp_path):
    save_file({"<cat-toy>": random_array("one", (12,))}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": random_array("three", (3, 12))}, tmp_path / "grumpyhat.safetensors")
    pipeline.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    pipeline.load_textual_inversion(tmp_path, weight_name="grumpyhat.safetensors", token="grumpyhat")
    files = [tmp_path / "learned_embeds.safetensors", tmp_path / "grumpyhat.safetensors"]
    model = load_model(folder, textual_inversions=files)
    for prompt in ("a <cat-toy>", "a red <cat-toy> with the grumpyhat", "grumpyhat", "a blue mushroom"):
        ours = np.asarray(encode_text(model, [prompt]))
        assert relative_difference(ours, _text(pipeline, prompt)) <= TOLERANCE


def _run_command_of_error(model, where):
    """Run the command given in a model's error message."""
    with pytest.raises(UserError) as error:
        load_model(model)
    command = str(error.value)[str(error.value).index("python -c") :]
    folder = os.path.dirname(sys.executable)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, cwd=where, env=os.environ | {"PATH": path})


def test_the_command_converts_a_checkpoint(tmp_path):
    write_single_file(tmp_path / "old.safetensors", FIRST)
    expected = load_model(tmp_path / "old.safetensors")
    tensors = load_file(tmp_path / "old.safetensors")
    (tmp_path / "old.safetensors").unlink()
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "old.ckpt")
    _run_command_of_error(tmp_path / "old.ckpt", tmp_path)
    converted = load_model(tmp_path / "old.safetensors")
    assert jax.tree.all(jax.tree.map(np.array_equal, converted.unet_params, expected.unet_params))


def test_the_command_converts_a_folder(folder, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model", safe_serialization=False)
    _run_command_of_error(tmp_path / "model", tmp_path)
    converted, expected = load_model(tmp_path / "model-safetensors"), load_model(folder)
    for name in ("unet_params", "vae_params", "text_params"):
        same = jax.tree.map(np.array_equal, getattr(converted, name), getattr(expected, name))
        assert jax.tree.all(same)
