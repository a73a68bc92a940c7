"""PSNR and SSIM compared with loops over windows."""

import jax
import jax.numpy as jnp
import numpy as np

from ge3d_jax.metrics.pictures import psnr, ssim


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    first = random.random((14, 17, 3))
    return first, np.clip(first + 0.3 * random.normal(size=first.shape), 0, 1)


def ssim_by_loops(first: np.ndarray, second: np.ndarray) -> float:
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(first.shape[0] - 10):
        for column in range(first.shape[1] - 10):
            for channel in range(first.shape[2]):
                x, y = (image[row : row + 11, column : column + 11, channel] for image in (first, second))
                mean_x, mean_y = (window * x).sum(), (window * y).sum()
                var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
                both = (window * (x - mean_x) * (y - mean_y)).sum()
                light = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
                values.append(light * (2 * both + 9e-4) / (var_x + var_y + 9e-4))
    return float(np.mean(values))


def test_ssim_equals_a_loop_over_windows():
    first, second = pair(0)
    found = jax.jit(ssim)(jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32))
    np.testing.assert_allclose(found, ssim_by_loops(first, second), rtol=1e-4)


def test_equal_images_have_ssim_1_and_a_finite_gradient():
    image = jnp.asarray(pair(1)[0], jnp.float32).at[:12].set(0.0)
    value, gradient = jax.jit(jax.value_and_grad(ssim))(image, image)
    np.testing.assert_allclose(value, 1.0, atol=1e-5)
    assert np.isfinite(gradient).all()


def test_psnr_of_a_known_error():
    image = jnp.full((4, 5, 3), 0.3)
    np.testing.assert_allclose(psnr(image, image + 0.1), 20.0, rtol=1e-4)
