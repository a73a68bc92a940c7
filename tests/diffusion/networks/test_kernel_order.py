"""Kernels stored as cuDNN reads them: on which devices, and with the same results everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.devices import Target, compiling_for
from ge3d_jax.diffusion.networks.kernel_order import OrderedKernel, in_read_order, with_kernels_restored
from ge3d_jax.diffusion.pipeline import compiled_decode, encode_images, unet_output
from ge3d_jax.diffusion.weights.checkpoint import load_model, save_model
from tests.reference_models import random_array, tiny_model

CHANNELS_LAST, CHANNELS_FIRST, AS_WRITTEN = (6, 3, 5, 4), (6, 4, 3, 5), (3, 5, 4, 6)
KERNEL = random_array("kernel", AS_WRITTEN)


@pytest.mark.parametrize(
    ("target", "in_half", "in_single"),
    [
        (Target("gpu", (9, 0)), CHANNELS_LAST, CHANNELS_LAST),
        (Target("gpu", (8, 9)), CHANNELS_LAST, CHANNELS_FIRST),
        (Target("gpu", (8, 0)), CHANNELS_LAST, CHANNELS_FIRST),
        # Turing, a GPU of another maker, and a CPU.
        (Target("gpu", (7, 5)), AS_WRITTEN, AS_WRITTEN),
        (Target("gpu", None), AS_WRITTEN, AS_WRITTEN),
        (Target("cpu", None), AS_WRITTEN, AS_WRITTEN),
    ],
)
def test_kernels_are_stored_as_they_are_read(target, in_half, in_single):
    for dtype, expected in ((jnp.bfloat16, in_half), (jnp.float32, in_single)):
        with compiling_for(target):
            stored = {"kernel": in_read_order(KERNEL, dtype), "bias": in_read_order(KERNEL[0, 0, 0], dtype)}
        assert jax.tree.leaves(stored)[1].shape == expected
        assert isinstance(stored["kernel"], OrderedKernel) == (expected != AS_WRITTEN)
        restored = with_kernels_restored(stored)
        np.testing.assert_array_equal(restored["kernel"], KERNEL)
        np.testing.assert_array_equal(restored["bias"], KERNEL[0, 0, 0])


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, tiny_model(folder))
    return folder


@pytest.mark.parametrize("generation", [(9, 0), (8, 0)], ids=["channels last", "channels first"])
def test_a_model_with_kernels_in_read_order_is_the_same_model(tiny_folder, tmp_path, generation):
    plain = load_model(tiny_folder)
    with compiling_for(Target("gpu", generation)):
        ordered = load_model(tiny_folder, arrange=in_read_order)
    for name, kernels in (("unet_params", "conv_in"), ("vae_params", "quant_conv")):
        assert isinstance(getattr(ordered, name)[kernels]["kernel"], OrderedKernel)
    latents = jnp.asarray(random_array("latents", (2, 4, 4, plain.unet.config.in_channels)))
    text = jnp.asarray(random_array("text", (2, 3, plain.unet.config.cross_attention_dim)))
    noise = jax.jit(unet_output)
    arguments = (latents, jnp.array([3, 700]), text)
    np.testing.assert_allclose(noise(ordered, *arguments), noise(plain, *arguments), atol=1e-5)
    images = compiled_decode(ordered, latents)
    np.testing.assert_allclose(images, compiled_decode(plain, latents), atol=1e-5)
    np.testing.assert_allclose(
        encode_images(ordered, images, None), encode_images(plain, images, None), atol=1e-5
    )
    # Files have the axes of diffusers.
    save_model(tmp_path, ordered)
    for one, other in zip(jax.tree.leaves(load_model(tmp_path)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)
