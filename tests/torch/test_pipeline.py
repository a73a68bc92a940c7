"""Folders written by us and opened by diffusers: the same image from the same latents."""

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from ge3d_jax import toybox
from ge3d_jax.diffusion.pipeline import decode_latents, encode_text
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.diffusion.weights.checkpoint import load_model, save_model
from tests.reference_models import random_array, tiny_model

# Two steps of an 8-bit image.
IMAGE_TOLERANCE = 2 / 255


def _both_images(folder, prompts, negative, *, steps, guidance_scale):
    model = load_model(folder)
    config = model.unet.config
    shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
    latents = random_array("starting noise", shape)
    text, negative_text = encode_text(model, prompts), encode_text(model, [negative] * len(prompts))
    final = sample(
        model,
        jax.random.key(0),
        text,
        negative_text,
        steps=steps,
        guidance_scale=guidance_scale,
        latents=latents.transpose(0, 2, 3, 1),
    )
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompts,
        negative_prompt=[negative] * len(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        latents=torch.from_numpy(latents),
        output_type="np",
    ).images
    return np.asarray(decode_latents(model, final)), theirs


def _assert_same_image(ours, theirs):
    assert ours.shape == theirs.shape
    # A flat image could agree by clipping alone.
    assert theirs.std() > 0.05
    assert np.abs(ours - theirs).max() <= IMAGE_TOLERANCE


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_random_model_gives_the_same_image(tmp_path, prediction_type):
    save_model(tmp_path / "model", tiny_model(tmp_path, prediction_type))
    prompts = ["a red mushroom", "the front view of a blue robot with mushrooms"]
    _assert_same_image(
        *_both_images(tmp_path / "model", prompts, "a blue mushroom", steps=7, guidance_scale=3.0)
    )


@pytest.mark.parametrize("name", toybox.MODELS)
def test_the_bundled_models_give_the_same_image(name):
    prompts = ["the front view of a red robot", "a blue mushroom with a yellow stem"]
    _assert_same_image(*_both_images(toybox.model_folder(name), prompts, "", steps=25, guidance_scale=5.0))
