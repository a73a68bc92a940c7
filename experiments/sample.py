"""Make pictures from sentences, to see whether a model works.

    python experiments/sample.py --prompt="a red mushroom" --prompt="a blue robot" --count=4
    python experiments/sample.py --model=stable-diffusion-2-1-base --prompt="a photo of a corgi"

With the bundled model a picture takes a second on two CPU cores, after half a minute of compiling the first
time. A full-size model is meant for a GPU; on a CPU it takes minutes (--size=256 --steps=5 gives a first
impression sooner) and 8 GB of memory. The folder outputs/sample-a-red-mushroom/ then holds every picture,
sheet.png with all of them, and config.json. experiments/check_model.py measures whether a model is loaded
correctly.
"""

from absl import flags

from ge3d_jax.cli import script

_PROMPT = flags.DEFINE_multi_string(
    "prompt", None, 'What to show, e.g. "a red mushroom"; may be repeated.', required=True
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Instead of the bundled model: a folder in diffusers layout, a .safetensors file, or a hub id.",
)
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What the pictures should not show.")
_STEPS = flags.DEFINE_integer("steps", 25, "Number of DDIM steps.")
_GUIDANCE = flags.DEFINE_float(
    "guidance", 7.5, "Guidance scale, how strongly to follow the text; 1 is no guidance."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first picture; later ones have consecutive seeds.")
_COUNT = flags.DEFINE_integer("count", 1, "Number of pictures per prompt.")
_SIZE = flags.DEFINE_integer(
    "size", None, "Edge in pixels; by default the size that the model was trained on."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "auto: bfloat16 on a GPU, float32 on a CPU."
)
_LORA = flags.DEFINE_multi_string("lora", [], "A LoRA file to add to the model; may be repeated.")
_LORA_STRENGTH = flags.DEFINE_multi_float(
    "lora_strength",
    [],
    "Strength of LoRA files, by default 1, as trained; one for all files, or one for each.",
)
_TEXTUAL_INVERSION = flags.DEFINE_multi_string(
    "textual_inversion", [], "A file with the embedding of a new word for the prompt; may be repeated."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/sample-<prompt>.")


def main() -> None:
    """Sample, and print where the pictures are."""
    from ge3d_jax.runs.request import pair_loras
    from ge3d_jax.runs.sample import sample_to_folder

    folder = sample_to_folder(
        _PROMPT.value,
        model=_MODEL.value,
        negative_prompt=_NEGATIVE.value,
        steps=_STEPS.value,
        guidance_scale=_GUIDANCE.value,
        seed=_SEED.value,
        count=_COUNT.value,
        size=_SIZE.value,
        dtype=_DTYPE.value,
        loras=pair_loras(_LORA.value, _LORA_STRENGTH.value),
        textual_inversions=_TEXTUAL_INVERSION.value,
        out=_OUT.value,
    )
    print(f"  All pictures:    {folder / 'sheet.png'}")
    print(f"  Each by itself:  {folder}/")


if __name__ == "__main__":
    script.run(main)
