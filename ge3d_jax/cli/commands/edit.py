"""Edit one picture as GE3D edits the views of an object: up to a noise level, down again with another text.

    ge3d edit --source_prompt="a red mushroom" --prompt="a blue mushroom"
    ge3d edit --image=mine.png --prompt="a blue mushroom"

It takes about half a minute on two CPU cores, most of it compiling. The folder outputs/edit-a-blue-mushroom/
then holds nodes.png (top: the picture on its way up; bottom: on its way down, each with its time t),
edited.png, source.png and config.json. A good model returns nearly the source if the two sentences agree; the
higher --max_step, the more may change.
"""

from absl import flags

from ge3d_jax.cli import model_flags

flags.adopt_module_key_flags(model_flags)

_PROMPT = flags.DEFINE_string(
    "prompt", None, 'What the picture should show, e.g. "a blue mushroom".', required=True
)
_IMAGE = flags.DEFINE_string("image", None, "The picture to edit; its central square is used.")
_SOURCE_PROMPT = flags.DEFINE_string(
    "source_prompt", None, "Instead of --image: a sentence of the Toybox world, drawn exactly."
)
_AZIMUTH = flags.DEFINE_float(
    "azimuth", 30.0, "Camera of --source_prompt in degrees: 0 in front, 90 on the object's left."
)
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What the picture should not show.")
_MAX_STEP = flags.DEFINE_integer("max_step", 600, "Highest time, 1 to 999.")
_NODES = flags.DEFINE_integer("nodes", 6, "Number of steps each way.")
_SCALE = flags.DEFINE_float("guidance_scale", 7.5, "How strongly to follow the text.")
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/edit-<prompt>.")


def main() -> None:
    """Edit the picture, and print where the results are."""
    from ge3d_jax.runs.edit import edit_2d

    folder = edit_2d(
        _PROMPT.value,
        image=_IMAGE.value,
        source_prompt=_SOURCE_PROMPT.value,
        azimuth_degrees=_AZIMUTH.value,
        model=model_flags.model_choice(),
        negative_prompt=_NEGATIVE.value,
        max_step=_MAX_STEP.value,
        nodes=_NODES.value,
        guidance_scale=_SCALE.value,
        out=_OUT.value,
    )
    print(f"  Both trajectories:  {folder / 'nodes.png'}")
    print(f"  The edited picture: {folder / 'edited.png'}")
