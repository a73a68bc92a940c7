"""Train the small Point-E of the Toybox world: from a sentence to 256 points, and from these to 1024.

    python experiments/train_point_e.py --out=runs/point_e

On two CPU cores this takes a minute for the points of all objects, then about an hour for the base network
and a third of that for the upsampler. Every stage is stored in --out; after an interruption, the same command
continues where it stopped. At the end, --out/model holds the model, clouds.png shows clouds of all kinds in
four colors, and clouds.json says what they were recognized as. --install copies the model into the package.
It contains a copy of the bundled text encoder, so it keeps working when that one is retrained.
"""

from pathlib import Path

from absl import flags

from ge3d_jax.cli import script

_OUT = flags.DEFINE_string("out", "runs/point_e", "Folder for the stages and the finished model.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of points, parameters and noise.")
_BASE_STEPS = flags.DEFINE_integer("base_steps", 7000, "Steps of the base network.", lower_bound=1)
_BASE_CLOUDS = flags.DEFINE_integer("base_clouds", 32, "Clouds in each of them.", lower_bound=1)
_UPSAMPLER_STEPS = flags.DEFINE_integer("upsampler_steps", 2000, "Steps of the upsampler.", lower_bound=1)
_UPSAMPLER_CLOUDS = flags.DEFINE_integer("upsampler_clouds", 8, "Clouds in each of them.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate of both.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 250, "Steps between saved states.", lower_bound=1)
_INSTALL = flags.DEFINE_bool("install", False, "Copy the finished model into the package.")


def main() -> None:
    """Run the remaining stages, then say how good the clouds are and where they are."""
    from ge3d_jax.scenes.start.point_e.files import bundled_folder
    from ge3d_jax.toybox.model.point_e_recipe import Recipe, evaluate, train

    recipe = Recipe(
        seed=_SEED.value,
        base_steps=_BASE_STEPS.value,
        base_clouds=_BASE_CLOUDS.value,
        upsampler_steps=_UPSAMPLER_STEPS.value,
        upsampler_clouds=_UPSAMPLER_CLOUDS.value,
        learning_rate=_RATE.value,
        save_every=_SAVE_EVERY.value,
    )
    out = Path(_OUT.value)
    folder = train(recipe, out, install=bundled_folder() if _INSTALL.value else None)
    found = evaluate(folder, out)
    clouds = len(found["clouds"])
    print(
        f"Of {clouds} clouds {found['kind']:.0%} have the right kind, {found['color']:.0%} the right color."
    )
    print(f"The model is in {folder}; look at {out / 'clouds.png'}")


if __name__ == "__main__":
    script.run(main)
