"""Stable Diffusion 2.1 at its full size with random weights: equal to diffusers and transformers.

    python -m pytest -m slow tests/torch/test_full_size.py -s

This is not part of the default run: it takes some minutes, 8 GB of memory and 10 GB of disk. It handles one
network at a time: PyTorch's network is initialized, written to a folder, run and released before ours reads
the folder. -s shows the measured errors.
"""

import gc
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from benchmarks.models import SIZES
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ge3d_jax.diffusion.networks import text_encoder, unet, vae
from ge3d_jax.diffusion.pipeline import decode_latents, encode_text
from ge3d_jax.diffusion.sampling import sample
from ge3d_jax.diffusion.tokenizer import build_tokenizer
from ge3d_jax.diffusion.weights.checkpoint import load_model
from ge3d_jax.diffusion.weights.folder import open_weights, plain_text_name
from ge3d_jax.diffusion.weights.parameters import parameter_shapes, read_parameters
from ge3d_jax.diffusion.weights.tensor_files import rename_tensors
from tests.reference_models import TINY_WORDS, TOLERANCE, random_array, random_tensor, relative_difference

pytestmark = pytest.mark.slow

SIZE = SIZES["sd21"]
# 256 pixels give 32×32 latents.
PIXELS, LATENTS = 256, 32
TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
IMAGE_TOLERANCE = 2 / 255
# Flax rounds a product to bfloat16 before adding the bias and again afterwards; PyTorch rounds once.
ROUNDING_MARGIN = 1.25


class Answers(NamedTuple):
    """PyTorch's results: outputs in float32 and bfloat16 by name, and the folder of the weights."""

    exact: dict[str, np.ndarray]
    half: dict[str, np.ndarray]
    folder: object


def _filled(network):
    """Random weights, drawn as for the tests' small networks, filled in one by one."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not name.endswith("position_ids"):
                name = name.removeprefix("text_model.")
                value.copy_(torch.from_numpy(random_tensor(name, tuple(value.shape))))
    return network.requires_grad_(False).eval()


def _answers(network, run, folder):
    network = _filled(network)
    network.save_pretrained(folder)
    exact = run(network, torch.float32)
    half = run(network.to(torch.bfloat16), torch.bfloat16)
    return Answers(exact, half, folder)


def _last(values):
    values = values.detach().float()
    return (values.permute(0, 2, 3, 1) if values.ndim == 4 else values).numpy()


def _parameters(module, folder, dtype, file="diffusion_pytorch_model.safetensors", rename=None):
    path = folder / file
    tensors = open_weights(path)
    if rename is not None:
        tensors = rename_tensors(tensors, rename)
    return read_parameters(tensors, parameter_shapes(module), path, dtype=dtype)


def _mean_square_difference(ours, reference):
    """‖ours − reference‖₂ / ‖reference‖₂: the largest rounding error is a matter of luck, the mean is not."""
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


def _check(name, ours, ours_half, answers):
    """Check float32 to the tolerance, and that bfloat16 is about as far from float32 as PyTorch's own."""
    failed = []
    for key, exact in answers.exact.items():
        assert np.abs(exact).max() > 1e-3 and np.isfinite(exact).all()
        error = relative_difference(ours[key], exact)
        ours_rounded = ours_half[key].astype(np.float32)
        largest = [relative_difference(values, exact) for values in (ours_rounded, answers.half[key])]
        half, theirs = (
            _mean_square_difference(values, exact) for values in (ours_rounded, answers.half[key])
        )
        print(
            f"{name} {key}: float32 {error:.1e}; bfloat16 {half:.2e}, PyTorch's {theirs:.2e} "
            f"(largest {largest[0]:.2e}, PyTorch's {largest[1]:.2e})"
        )
        if error > TOLERANCE or half > ROUNDING_MARGIN * theirs:
            failed.append(key)
    assert not failed


def _both(make, run, read):
    """Our results in float32 and in bfloat16, one after the other."""
    outputs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        module = make(dtype)
        outputs.append(jax.tree.map(np.asarray, jax.jit(run, static_argnums=0)(module, read(module, dtype))))
        gc.collect()
    return outputs


def test_unet(tmp_path):
    latents = random_array("latents", (2, 4, LATENTS, LATENTS))
    times, text = np.array([7, 801]), random_array("text", (2, 77, 1024))

    def run_theirs(network, dtype):
        inputs = (
            torch.from_numpy(latents).to(dtype),
            torch.from_numpy(times),
            torch.from_numpy(text).to(dtype),
        )
        with torch.no_grad():
            return {"output": _last(network(*inputs).sample)}

    answers = _answers(UNet2DConditionModel.from_config(SIZE.unet.to_dict()), run_theirs, tmp_path)
    gc.collect()

    def run(module, parameters):
        x = jnp.asarray(latents.transpose(0, 2, 3, 1))
        return {"output": module.apply({"params": parameters}, x, jnp.asarray(times), jnp.asarray(text))}

    ours = _both(
        lambda dtype: unet.UNet2DConditionModel(SIZE.unet, dtype),
        run,
        lambda module, dtype: _parameters(module, tmp_path, dtype),
    )
    _check("UNet", *ours, answers)


def test_vae_and_its_gradient(tmp_path):
    images = np.tanh(random_array("images", (1, 3, PIXELS, PIXELS)))
    latents = random_array("vae latents", (1, 4, LATENTS, LATENTS))

    def run_theirs(network, dtype):
        picture = torch.from_numpy(images).to(dtype).requires_grad_(True)
        posterior = network.encode(picture).latent_dist
        given = torch.from_numpy(latents).to(dtype)
        (gradient,) = torch.autograd.grad(posterior.mean, picture, given)
        with torch.no_grad():
            decoded = network.decode(given).sample
        outputs = (posterior.mean, posterior.logvar, gradient, decoded)
        return dict(zip(("mean", "log_variance", "gradient", "decoded"), map(_last, outputs), strict=True))

    answers = _answers(AutoencoderKL.from_config(SIZE.vae.to_dict()), run_theirs, tmp_path)
    gc.collect()

    def run(module, parameters):
        def encode(x):
            return module.apply({"params": parameters}, x, method="encode")

        (mean, log_variance), pull_back = jax.vjp(encode, jnp.asarray(images.transpose(0, 2, 3, 1)))
        given = jnp.asarray(latents.transpose(0, 2, 3, 1))
        (gradient,) = pull_back((given, jnp.zeros_like(log_variance)))
        decoded = module.apply({"params": parameters}, given, method="decode")
        return {"mean": mean, "log_variance": log_variance, "gradient": gradient, "decoded": decoded}

    ours = _both(
        lambda dtype: vae.AutoencoderKL(SIZE.vae, dtype),
        run,
        lambda module, dtype: _parameters(module, tmp_path, dtype),
    )
    _check("VAE", *ours, answers)


def test_text_encoder(tmp_path):
    ids = np.random.default_rng(5).integers(0, TEXT_CONFIG["vocab_size"], (2, 77)).astype(np.int32)

    def run_theirs(network, dtype):
        with torch.no_grad():
            return {"output": _last(network(torch.from_numpy(ids).long()).last_hidden_state)}

    answers = _answers(CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)), run_theirs, tmp_path)
    gc.collect()
    ours = _both(
        lambda dtype: text_encoder.CLIPTextModel(text_encoder.CLIPTextConfig(**TEXT_CONFIG), dtype),
        lambda module, parameters: {"output": module.apply({"params": parameters}, jnp.asarray(ids))},
        lambda module, dtype: _parameters(module, tmp_path, dtype, "model.safetensors", plain_text_name),
    )
    _check("text encoder", *ours, answers)


def test_three_steps_give_the_same_image(tmp_path):
    folder = tmp_path / "model"
    build_tokenizer(TINY_WORDS, tmp_path / "words", max_length=77)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(folder / "tokenizer")
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for part, make in (
        ("text_encoder", lambda: CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG, **ids))),
        ("vae", lambda: AutoencoderKL.from_config(SIZE.vae.to_dict())),
        ("unet", lambda: UNet2DConditionModel.from_config(SIZE.unet.to_dict())),
    ):
        _filled(make()).save_pretrained(folder / part)
        gc.collect()
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index))

    prompt = "the front view of a red mushroom"
    noise = random_array("starting noise", (1, 4, LATENTS, LATENTS))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt,
        height=PIXELS,
        width=PIXELS,
        num_inference_steps=3,
        guidance_scale=1.0,
        latents=torch.from_numpy(noise),
        output_type="np",
    ).images
    del pipeline
    gc.collect()

    model = load_model(folder)
    text, negative = encode_text(model, [prompt, ""])
    latents = sample(
        model,
        jax.random.key(0),
        text[None],
        negative[None],
        steps=3,
        guidance_scale=1.0,
        latents=jnp.asarray(noise.transpose(0, 2, 3, 1)),
    )
    ours = np.asarray(jax.jit(decode_latents)(model, latents))
    difference = np.abs(ours - theirs).max()
    print(f"image: difference {difference:.1e}, standard deviation {theirs.std():.2f}")
    # A flat image could agree by clipping alone.
    assert theirs.std() > 0.1
    assert difference <= IMAGE_TOLERANCE
