"""A Point-E with random weights, small enough to sample instantly, with the bundled text encoder."""

import jax
import numpy as np

from ge3d_jax.scenes.start.point_e.files import save_point_e
from ge3d_jax.scenes.start.point_e.model import PointE
from ge3d_jax.scenes.start.point_e.networks import BaseConfig, UpsamplerConfig, parameter_shapes
from ge3d_jax.scenes.start.point_e.sampler import Stage
from ge3d_jax.toybox import model_folder

BASE = BaseConfig(width=16, layers=1, heads=2, points=12, text_features=64)
UPSAMPLER = UpsamplerConfig(
    width=16, layers=1, heads=2, points=20, given_points=12, grid_tokens=1, grid_channels=4
)
LANGUAGE = {"toybox.json": '{"language": "toybox"}\n'}


def random_parameters(config, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(0.2 * rng.normal(size=leaf.shape), np.float32), parameter_shapes(config)
    )


def model():
    return PointE(
        base=random_parameters(BASE),
        upsampler=random_parameters(UPSAMPLER, seed=1),
        base_config=BASE,
        upsampler_config=UPSAMPLER,
        base_stage=Stage(steps=2),
        upsampler_stage=Stage(schedule="linear", steps=2, sigma_max=160.0, churn=0.0, guidance=0.0),
    )


def save(folder):
    save_point_e(folder, model(), model_folder(), LANGUAGE)
    return folder


def zeros(config):
    """Zero weights, for file tests."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), parameter_shapes(config))
