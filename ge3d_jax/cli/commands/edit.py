"""Edit one picture, as GE3D edits the views of an object or by a method made for pictures.

    ge3d edit --source_prompt="a red mushroom" --prompt="a blue mushroom"
    ge3d edit --image=mine.png --prompt="a blue mushroom"
    ge3d edit --method=direct,npi --source_prompt="a red mushroom" --prompt="a blue mushroom"

This takes about half a minute on two CPU cores, most of it for compiling. The folder
outputs/edit-a-blue-mushroom/ then holds nodes.png (top: the picture on its way up; bottom: on its way down;
each with its time t), edited.png, source.png, and config.json. If the two sentences are the same, a good
model returns nearly the source. The higher --max_step, the more may change.

With --method, the folder holds compare.html, a page with a slider between any two pictures, and a folder for
each method: edited.png; inversion.png, the source as the method reconstructs it; words.png, where each word
is; trajectory.png. Methods preserve what both sentences have in common by Prompt-to-Prompt, and most need to
know what the picture shows: --image=mine.png --source_prompt="a red mushroom". For single words:

    --words="blue x2, stem until 0.6"      blue counts twice; the stem is the source's for 60 % of the steps
    --blend="mushroom, not stem"           the picture may change where the mushroom is, but not at the stem
"""

from typing import Any

from absl import flags

from ge3d_jax.cli import model_flags, script

flags.adopt_module_key_flags(model_flags)

_PROMPT = flags.DEFINE_string(
    "prompt", None, 'What the picture should show, e.g. "a blue mushroom".', required=True
)
_METHOD = flags.DEFINE_list(
    "method",
    ["ge3d"],
    "How to edit: ge3d, or other methods, separated by commas. A wrong name lists them all.",
)
_IMAGE = flags.DEFINE_string("image", None, "The picture to edit; its central square is used.")
_SOURCE_PROMPT = flags.DEFINE_string(
    "source_prompt",
    None,
    "What the picture shows; without --image, a sentence of the Toybox world, which is drawn exactly.",
)
_AZIMUTH = flags.DEFINE_float(
    "azimuth", 30.0, "Camera of a drawn --source_prompt, degrees: 0 in front, 90 on the object's left."
)
_NEGATIVE = flags.DEFINE_string("negative_prompt", "", "What the picture should not show.")
_MAX_STEP = flags.DEFINE_integer("max_step", None, "For ge3d: highest time, 1 to 999; by default 600.")
_NODES = flags.DEFINE_integer("nodes", None, "For ge3d: number of steps each way; by default 6.")
_SCALE = flags.DEFINE_float(
    "guidance_scale", None, "How strongly to follow the text; by default 7.5, or the method's own."
)
_WORDS = flags.DEFINE_string("words", None, 'For other methods: e.g. "blue x2, stem until 0.6".')
_BLEND = flags.DEFINE_string("blend", None, 'For other methods: where to change, e.g. "mushroom, not stem".')
_FORM = flags.DEFINE_string(
    "form", None, "For other methods: refine, the default, replace (word for word) or match."
)
_CROSS = flags.DEFINE_float(
    "cross", None, "For other methods: share of the steps whose attention to words is kept; by default 0.4."
)
_SELF = flags.DEFINE_float(
    "self_attention", None, "For other methods: share of the steps whose layout is kept; by default 0.6."
)
_SEED = flags.DEFINE_integer("seed", None, "For methods that draw noise; by default 0.")
_SET = flags.DEFINE_multi_string(
    "set", [], "For other methods: name=value changes a setting, e.g. steps=20; may be repeated."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/edit-<prompt>.")
_GE3D = "ge3d"


def _given(*found: flags.FlagHolder[Any]) -> dict[str, Any]:
    """The flags that were given, by name."""
    return {flag.name: flag.value for flag in found if flag.value is not None and flag.value != []}


def main() -> None:
    """Edit the picture, and print where the results are."""
    if _IMAGE.value is not None:
        script.refuse(["azimuth"] if _AZIMUTH.present else [], where="--image")
    of_ge3d = _given(_MAX_STEP, _NODES)
    of_others = _given(_WORDS, _BLEND, _FORM, _CROSS, _SELF, _SEED)
    shared: dict[str, Any] = {
        "image": _IMAGE.value,
        "source_prompt": _SOURCE_PROMPT.value,
        "azimuth_degrees": _AZIMUTH.value,
        "negative_prompt": _NEGATIVE.value,
        "out": _OUT.value,
    }
    if _METHOD.value == [_GE3D]:
        script.refuse([*of_others, *_given(_SET)], where=f"--method={_GE3D}")
        from ge3d_jax.runs.edit import edit_2d

        scale: dict[str, Any] = {} if _SCALE.value is None else {"guidance_scale": _SCALE.value}
        folder = edit_2d(_PROMPT.value, model=model_flags.model_choice(), **shared, **of_ge3d, **scale)
        print(f"  Both trajectories:  {folder / 'nodes.png'}")
        print(f"  The edited picture: {folder / 'edited.png'}")
        return
    script.refuse(list(of_ge3d), where=f"--method={','.join(_METHOD.value)}")
    overrides: dict[str, Any] = dict(script.parse_settings(_SET.value))
    if _SCALE.value is not None:
        overrides["scale"] = _SCALE.value
    from ge3d_jax.runs.edit_by_method import edit_by_method

    folder = edit_by_method(
        _PROMPT.value,
        methods=[name.strip() for name in _METHOD.value],
        model=model_flags.model_choice(),
        overrides=overrides,
        **shared,
        **of_others,
    )
    print(f"  All side by side: {folder / 'compare.png'}")
    print(f"  With a slider:    open {folder / 'compare.html'} in a browser")
    for name in _METHOD.value:
        print(f"  {name.strip()}: {folder / name.strip()}/")
