"""Make pictures from sentences, to see that a model is sound.

    python experiments/sample.py --prompt="a red mushroom" --prompt="a blue robot" --count=4
    python experiments/sample.py --model=stable-diffusion-2-1-base --prompt="a photo of a corgi"

With the bundled model a picture takes a second on two processor cores, after half a minute of compiling the
first time. A full-size model is meant for a GPU; on a processor it takes minutes (--size=256 --steps=5 gives
a first impression sooner) and 8 GB of memory. The folder outputs/sample-a-red-mushroom/ then holds every
picture, sheet.png with all of them, and config.json. Whether a model was loaded right, measured rather than
looked at: experiments/check_model.py.
"""

from absl import flags

from ge3d_jax.cli import script

_PROMPT = flags.DEFINE_multi_string(
    "prompt", None, 'What to show, as "a red mushroom"; may be given many times.', required=True
)
_MODEL = flags.DEFINE_string(
    "model", None, "Another model: a folder in diffusers layout, a .safetensors file, or a hub id."
)
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What the pictures shall not show.")
_STEPS = flags.DEFINE_integer("steps", 25, "Steps of DDIM.")
_GUIDANCE = flags.DEFINE_float("guidance", 7.5, "How strongly the text pulls; 1 is not at all.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first picture; the next ones have the next seeds.")
_COUNT = flags.DEFINE_integer("count", 1, "Pictures of each prompt.")
_SIZE = flags.DEFINE_integer("size", None, "Edge in pixels, instead of what the model was trained on.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "auto", ["auto", "float32", "bfloat16"], "auto: bfloat16 on a GPU, float32 on a processor."
)
_LORA = flags.DEFINE_multi_string("lora", [], "A LoRA file to add to the model; may be given many times.")
_LORA_STRENGTH = flags.DEFINE_multi_float(
    "lora_strength", [], "1, the default, is as it was trained; one for all LoRA files, or one for each."
)
_TEXTUAL_INVERSION = flags.DEFINE_multi_string(
    "textual_inversion", [], "A file with the embedding of a new word for the prompt; many times."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/sample-<prompt>.")


def main() -> None:
    """Sample, and say where the pictures are."""
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
