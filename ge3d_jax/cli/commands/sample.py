"""Make pictures from sentences, to see whether a model works.

    ge3d sample --prompt="a red mushroom" --prompt="a blue robot" --count=4 --guidance=2.5
    ge3d sample --model=stable-diffusion-2-1-base --prompt="a photo of a corgi"

With the bundled model, a picture takes a second on two CPU cores, after half a minute of compiling the first
time; its pictures are best at --guidance=2.5, while the default suits Stable Diffusion. A full-size model is
meant for a GPU; on a CPU, a picture takes minutes (--size=256 --steps=5 gives a first impression sooner) and
8 GB of memory. The folder outputs/sample-a-red-mushroom/ then holds every picture, sheet.png with all of
them, and config.json. ge3d check-model tests whether a model is loaded correctly.
"""

from absl import flags

from ge3d_jax.cli import model_flags

flags.adopt_module_key_flags(model_flags)

_PROMPT = flags.DEFINE_multi_string(
    "prompt", None, 'What to show, e.g. "a red mushroom"; may be repeated.', required=True
)
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What the pictures should not show.")
_STEPS = flags.DEFINE_integer("steps", 25, "Number of DDIM steps.")
_GUIDANCE = flags.DEFINE_float(
    "guidance", 7.5, "Guidance scale, how strongly to follow the text; 1 means no guidance."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first picture; later ones have consecutive seeds.")
_COUNT = flags.DEFINE_integer("count", 1, "Number of pictures per prompt.")
_SIZE = flags.DEFINE_integer(
    "size", None, "Edge in pixels; by default the size that the model was trained on."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/sample-<prompt>.")


def main() -> None:
    """Sample, and print where the pictures are."""
    from ge3d_jax.runs.sample import sample_to_folder

    folder = sample_to_folder(
        _PROMPT.value,
        model=model_flags.model_choice(),
        negative_prompt=_NEGATIVE.value,
        steps=_STEPS.value,
        guidance_scale=_GUIDANCE.value,
        seed=_SEED.value,
        count=_COUNT.value,
        size=_SIZE.value,
        out=_OUT.value,
    )
    print(f"  All pictures:    {folder / 'sheet.png'}")
    print(f"  Each by itself:  {folder}/")
