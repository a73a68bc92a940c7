"""Write posed images of an object of the Toybox world, for `fit` and other tools.

    ge3d render-toybox --prompt="a red mushroom" --out=outputs/mushroom-images

This takes about fifteen seconds on two CPU cores, or a few minutes at --size=512. The folder then holds
train/ and test/ with transparent PNG images and their cameras in transforms_train.json and
transforms_test.json.
"""

from absl import flags

_PROMPT = flags.DEFINE_string("prompt", None, 'What to draw, e.g. "a red mushroom".', required=True)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/<prompt>-images.")
_VIEWS = flags.DEFINE_integer("views", 64, "Number of images to fit.")
_TEST_VIEWS = flags.DEFINE_integer("test_views", 16, "Number of images to hold out.")
_SIZE = flags.DEFINE_integer("size", 128, "Edge of the images, pixels.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the cameras.", lower_bound=0)


def main() -> None:
    """Draw the images, and print the next command."""
    from pathlib import Path

    from ge3d_jax.runs.folder import prepare_folder, slug
    from ge3d_jax.toybox.world.captions import parse
    from ge3d_jax.toybox.world.posed_images import write_posed_images

    sentence = parse(_PROMPT.value)
    folder = prepare_folder(_OUT.value or Path("outputs") / f"{slug(_PROMPT.value)}-images")
    write_posed_images(
        folder,
        sentence,
        views=_VIEWS.value,
        test_views=_TEST_VIEWS.value,
        size=_SIZE.value,
        seed=_SEED.value,
    )
    print(f"{_VIEWS.value} images to fit and {_TEST_VIEWS.value} to hold out in {folder}/")
    print(f"  Fit splats to them:  ge3d fit --images={folder}")
