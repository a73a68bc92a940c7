"""The count of useful operations, compared with formulas and with XLA, and for Stable Diffusion."""

import jax
import jax.numpy as jnp
import pytest
from benchmarks.flops import count_flop
from benchmarks.measure import xla_flop
from benchmarks.models import SIZES
from benchmarks.networks import UNET_FORWARD, VAE_ENCODE, VAE_GRADIENT, work_flop


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _convolve(x, kernel, **how):
    return jax.lax.conv_general_dilated(
        x, kernel, padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **how
    )


def test_products_count_twice_their_volume():
    assert count_flop(lambda a, b: a @ b + 1.0, _shape(3, 5), _shape(5, 7)) == 2 * 3 * 5 * 7
    queries, keys = _shape(2, 3, 4, 5), _shape(2, 6, 4, 5)
    logits = count_flop(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), queries, keys)
    assert logits == 2 * (2 * 4) * (3 * 6) * 5


def test_convolutions_count_their_kernel_at_each_output():
    x, kernel = _shape(2, 8, 8, 4), _shape(3, 3, 4, 6)
    whole = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    assert count_flop(lambda x, k: _convolve(x, k, window_strides=(1, 1)), x, kernel) == whole
    halved = count_flop(lambda x, k: _convolve(x, k, window_strides=(2, 2)), x, kernel)
    assert halved == whole / 4

    # Backward through a stride takes as much work as forward, not counting the zeros that dilate the input.
    def back(x, k):
        return jax.grad(lambda x: jnp.sum(_convolve(x, k, window_strides=(2, 2)) ** 2))(x)

    assert count_flop(back, x, kernel) == 2 * halved


def test_loops_count_every_turn_and_branches_the_most_expensive():
    def loop(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=5)[0]

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x)

    assert count_flop(jax.jit(loop), _shape(4, 4)) == 5 * 2 * 4**3
    assert count_flop(branch, _shape(4, 4)) == 2 * 2 * 4**3


def test_agrees_with_xla_where_xla_counts_all():
    def work(x, kernel, weights):
        return jnp.tanh(_convolve(x, kernel, window_strides=(1, 1))).reshape(2, -1) @ weights

    shapes = (_shape(2, 16, 16, 8), _shape(1, 1, 8, 16), _shape(16 * 16 * 16, 32))
    ours = count_flop(work, *shapes)
    # XLA also counts each addition, and lists the operations of tanh separately.
    assert ours == pytest.approx(xla_flop(jax.jit(work).lower(*shapes).compile()), rel=0.05)


def test_stable_diffusion_takes_as_many_operations_as_published():
    size = SIZES["sd21"]
    assert work_flop(UNET_FORWARD, size, 1) / 1e12 == pytest.approx(0.804, abs=5e-4)
    # Four images, forward and backward.
    assert 4 * work_flop(VAE_GRADIENT, size, 1) / 1e12 == pytest.approx(8.9, rel=0.02)


def test_the_gradient_of_the_image_costs_as_much_again():
    size = SIZES["toybox"]
    forward = work_flop(VAE_ENCODE, size, 1)
    assert work_flop(VAE_GRADIENT, size, 1) == pytest.approx(2 * forward, rel=0.1)
