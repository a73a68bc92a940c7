"""What the tests of the figures that compare losses share: settings that are made in seconds."""

from ge3d_jax.metrics.recognition import build_gallery
from ge3d_jax.runs.figures.loss_settings import Settings
from ge3d_jax.runs.trials import Trial
from tests.tiny_model import IMAGE_SIZE

TINY = {
    "iterations": "3",
    "views": "2",
    "image_size": str(IMAGE_SIZE),
    "start.count": "50",
    "buffer_capacity": "4096",
}
SDS = Trial("sds", TINY)
PROMPTS = ("a red mushroom", "a blue duck")


def tiny_settings(**changes):
    """Two prompts with two seeds by SDS."""
    given = {
        "preset": "toybox64",
        "trials": (SDS,),
        "prompts": PROMPTS,
        "seeds": (0, 1),
        "budget": 0.2,
        "processes": 1,
        "metrics": ("psnr", "shape_diversity", "seconds"),
    }
    return Settings(**(given | changes))


def tiny_gallery():
    """Of two kinds, from few sides."""
    return build_gallery(("duck", "mushroom"), azimuths=8, polar_degrees=(70.0,))
