"""Evaluate the bundled model: does it make what the sentence says, with a single front?

    python experiments/evaluate_toybox.py --part=all

There are three parts, with these times on two CPU cores: the recognizer on ground truth (a minute), 192
samples of the model (a minute), and 24 generated objects (about half an hour; an interrupted run continues
with the next object). The folder docs/evaluation then holds the numbers (recognizer.json, model.json,
objects.json), pictures of all samples and objects, and README.md with the results.

A quick look: --part=objects --count=4 --out=runs/look
The fast model of 64 pixels: --preset=toybox64 --out=docs/evaluation/toybox64; docs/evaluation then shows its
numbers beside its own. Likewise objects that start from a gray ball: --part=objects --preset=toybox_ball
--out=docs/evaluation/toybox_ball
Another loss: --part=objects --guidance=sds --prompts="a red mushroom,a cyan robot" --out=runs/sds
"""

import os
from pathlib import Path
from typing import Any

from absl import flags

from ge3d_jax.cli import script
from ge3d_jax.toybox import MODELS

# The first one is the default.
_PRESETS = (*MODELS, "toybox_ball")
_PARTS = ("recognizer", "model", "objects")
_PART = flags.DEFINE_enum("part", "all", [*_PARTS, "all"], "What to measure.")
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Folder for numbers, pictures and the page of results; by default docs/evaluation, or outputs/evaluation/"
    "results if other objects, settings, or models are asked for.",
)
_PRESET = flags.DEFINE_enum(
    "preset", _PRESETS[0], _PRESETS, "The objects' settings, and the bundled model they are for."
)
_MODEL = flags.DEFINE_string("model", None, "Folder of another model of the Toybox world.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of cameras, samples and the first object.", lower_bound=0)
_PROMPTS = flags.DEFINE_list(
    "prompts",
    None,
    "Objects to make instead of the 24, separated by commas; hidden means 48 others, drawn by --seed.",
)
_COUNT = flags.DEFINE_integer("count", None, "Make only this many objects.", lower_bound=1)
_OBJECTS = flags.DEFINE_string(
    "objects", "outputs/evaluation", "Folder of the generated objects; finished ones are reused."
)
_GUIDANCE = flags.DEFINE_string(
    "guidance", None, "The objects' loss, with its settings for the preset; by default the preset's."
)
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting of the objects' preset.")
# These make other results than the committed ones.
_OTHERS = (_PRESET, _MODEL, _SEED, _PROMPTS, _COUNT, _GUIDANCE, _SET)


def _measure_recognizer(out: Path, gallery: Any) -> dict[str, Any]:
    from ge3d_jax.runs import evaluate as evaluation
    from ge3d_jax.runs import evaluation_report as report
    from ge3d_jax.viewer.sheet import save_png

    figures = evaluation.measure_recognizer(gallery, seed=_SEED.value)
    save_png(out / "confusion_kinds.png", report.draw_confusion(figures["kind_confusion"], figures["kinds"]))
    save_png(
        out / "confusion_colors.png", report.draw_confusion(figures["color_confusion"], figures["colors"])
    )
    return figures


def _measure_model(out: Path, gallery: Any, folder: Path) -> dict[str, Any]:
    from functools import partial

    from ge3d_jax.diffusion.weights.checkpoint import load_model
    from ge3d_jax.runs import evaluate as evaluation
    from ge3d_jax.runs import evaluation_report as report
    from ge3d_jax.runs import made_objects
    from ge3d_jax.toybox.model.recipe import sample_pictures
    from ge3d_jax.viewer.sheet import save_png

    sample = partial(sample_pictures, load_model(folder))
    figures, pictures = evaluation.measure_model(gallery, sample, seed=_SEED.value)
    save_png(out / "samples.png", report.sample_sheet(figures, pictures))
    return {"weights": made_objects.model_fingerprint(folder)} | figures


def _measure_objects(out: Path, gallery: Any, folder: Path) -> dict[str, Any]:
    import jax

    from ge3d_jax.runs import evaluate as evaluation
    from ge3d_jax.runs import evaluation_report as report
    from ge3d_jax.runs import made_objects
    from ge3d_jax.runs.evaluation_prompts import HIDDEN, PROMPTS, check_prompts, hidden_prompts
    from ge3d_jax.viewer.sheet import save_png

    hidden = _PROMPTS.value == [HIDDEN]
    asked = hidden_prompts(_SEED.value) if hidden else _PROMPTS.value
    prompts = (asked or PROMPTS)[: _COUNT.value]
    check_prompts(prompts)
    overrides = script.parse_settings(_SET.value)
    loss = made_objects.loss_name(_GUIDANCE.value, overrides, preset=_PRESET.value)
    weights = made_objects.model_fingerprint(folder)
    objects, sides = [], []
    for index, prompt in enumerate(prompts):
        print(f"{index + 1}/{len(prompts)} {prompt}", flush=True)
        gaussians, seconds = made_objects.make_object(
            prompt,
            seed=_SEED.value + index,
            folder=Path(_OBJECTS.value) / weights,
            preset=_PRESET.value,
            model=_MODEL.value,
            guidance=_GUIDANCE.value,
            overrides=overrides,
        )
        pictures = evaluation.object_pictures(gaussians)
        likeness = evaluation.object_likeness(prompt, gaussians)
        one = {"seconds": seconds} | evaluation.measure_object(gallery, prompt, pictures)
        one["likeness"] = likeness
        print(f"  correct {one['right_kind_and_color']:.0%}, one front: {one['one_front']}, {seconds:.0f} s")
        objects.append(one)
        sides.append(report.object_sides(gaussians))
    save_png(out / "objects.png", report.object_sheet(objects, sides))
    device = jax.devices()[0]
    return {
        "weights": weights,
        "seed": _SEED.value,
        "preset": _PRESET.value,
        "guidance": loss,
        "overrides": overrides,
        "machine": f"{os.cpu_count()} CPU cores" if device.platform == "cpu" else device.device_kind,
        **evaluation.summarize_objects(objects),
        "likeness": evaluation.mean_likeness(objects),
        "list": objects,
    }


def main() -> None:
    """Evaluate the chosen parts, and write the page of all results so far."""
    import json

    from ge3d_jax.core.files import atomic_path
    from ge3d_jax.metrics.recognition import load_gallery
    from ge3d_jax.runs.asked import model_by_preset
    from ge3d_jax.runs.evaluation_report import markdown
    from ge3d_jax.runs.folder import prepare_folder, versions, write_json

    chosen = _PARTS if _PART.value == "all" else (_PART.value,)
    model = model_by_preset(_PRESET.value, _MODEL.value)
    folder = None if chosen == ("recognizer",) else model.check()
    is_other = any(flag.present for flag in _OTHERS)
    usual = "outputs/evaluation/results" if is_other else "docs/evaluation"
    out = prepare_folder(usual if _OUT.value is None else _OUT.value)
    gallery = load_gallery()
    for part in chosen:
        print(f"evaluating: {part}", flush=True)
        if folder is None or part == "recognizer":
            figures = _measure_recognizer(out, gallery)
        elif part == "model":
            figures = _measure_model(out, gallery, folder)
        else:
            figures = _measure_objects(out, gallery, folder)
        write_json(out / f"{part}.json", {"versions": versions()} | figures)
        print(f"  correct kind and color: {figures['right_kind_and_color']:.1%}", flush=True)

    def reports_in(folder: Path) -> dict[str, Any]:
        files = {part: folder / f"{part}.json" for part in _PARTS}
        return {
            part: json.loads(file.read_text(encoding="utf-8"))
            for part, file in files.items()
            if file.is_file()
        }

    beside = {preset: reports_in(out / preset) for preset in _PRESETS}
    with atomic_path(out / "README.md") as path:
        path.write_text(markdown(reports_in(out), beside), encoding="utf-8")
    print(f"The results are in {out / 'README.md'}")


if __name__ == "__main__":
    script.run(main)
