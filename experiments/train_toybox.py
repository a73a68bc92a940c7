"""Train the bundled model: the Toybox autoencoder, then UNet and text encoder.

    python experiments/train_toybox.py --out=runs/toybox

Every stage is stored in --out; after an interruption, the same command continues where it stopped. At the
end, --out/model holds the model in diffusers' layout, and samples.png shows samples of it. --install copies
the model into the package. `make train` runs this with the settings of the bundled model, in several hours.
"""

from pathlib import Path

from absl import flags

from ge3d_jax.cli import script
from ge3d_jax.toybox import MODELS

_OUT = flags.DEFINE_string("out", "runs/toybox", "Folder for the stages and the finished model.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of pictures, parameters and noise.")
_SIZE = flags.DEFINE_enum("image_size", "128", ["64", "128"], "Edge of the pictures, pixels.")
_VIEWS = flags.DEFINE_integer("views_per_kind", 384, "Traced views of every kind.", lower_bound=1)
_PICTURES = flags.DEFINE_integer("pictures", 131072, "Pictures the UNet is trained on.", lower_bound=64)
_VAE_STEPS = flags.DEFINE_integer("vae_steps", 6000, "Steps of the autoencoder.", lower_bound=1)
_VAE_BATCH = flags.DEFINE_integer("vae_batch", 32, "Pictures per step of the autoencoder.", lower_bound=2)
_VAE_RATE = flags.DEFINE_float("vae_learning_rate", 5e-3, "Peak learning rate of the autoencoder.")
_STEPS = flags.DEFINE_integer("unet_steps", 14000, "Steps of UNet and text encoder.", lower_bound=1)
_BATCH = flags.DEFINE_integer("unet_batch", 128, "Latents per step of UNet and text encoder.", lower_bound=2)
_RATE = flags.DEFINE_float("unet_learning_rate", 3e-3, "Peak learning rate of UNet and text encoder.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 1000, "Steps between saved states.", lower_bound=1)
_START = flags.DEFINE_enum(
    "start_from", "toybox64", ["", *MODELS], "Bundled model to begin with; empty for random parameters."
)
_INSTALL = flags.DEFINE_bool("install", False, "Copy the finished model into the package.")


def main() -> None:
    """Run the remaining stages, then print where the model is."""
    from ge3d_jax.toybox import model_folder
    from ge3d_jax.toybox.model.recipe import Recipe, train

    recipe = Recipe(
        seed=_SEED.value,
        image_size=int(_SIZE.value),
        views_per_kind=_VIEWS.value,
        pictures=_PICTURES.value,
        vae_steps=_VAE_STEPS.value,
        vae_batch=_VAE_BATCH.value,
        vae_learning_rate=_VAE_RATE.value,
        unet_steps=_STEPS.value,
        unet_batch=_BATCH.value,
        unet_learning_rate=_RATE.value,
        start_from=_START.value or None,
        save_every=_SAVE_EVERY.value,
    )
    # A model for pictures of 64 pixels is the second of those that come with the package.
    installed = model_folder(MODELS[recipe.image_size == 64])
    folder = train(recipe, Path(_OUT.value), install=installed if _INSTALL.value else None)
    print(f"The model is in {folder}; look at {Path(_OUT.value) / 'samples.png'}")


if __name__ == "__main__":
    script.run(main)
