"""Make the same objects with every loss, and compare them.

    python experiments/compare_losses.py

Four sentences, twelve losses, the settings of the `toybox` preset: three quarters of an hour on two CPU
cores; a run that was stopped continues with the next object. The folder docs/losses then holds comparison.md
(the table), comparison.csv and comparison.json (every object's figures) and comparison.png (four sides of
each). Other settings, one trial a line ("sds guidance.scale=20 iterations=400"):

    python experiments/compare_losses.py --trials=docs/losses/trials.txt --out=outputs/trials \\
        --prompts="a pink cat,a green lamp" --seed=100
"""

from pathlib import Path

from absl import flags

from ge3d_jax.cli import script
from ge3d_jax.core.caching import cache_folder

_LOSSES = flags.DEFINE_list("losses", None, "Losses, separated by commas; by default all there are.")
_TRIALS = flags.DEFINE_string("trials", None, "File with a loss and its settings on each line, instead.")
_PROMPTS = flags.DEFINE_list("prompts", None, "What to make, separated by commas.")
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the first object; each next one has the next.", lower_bound=0
)
_MODEL = flags.DEFINE_string("model", None, "Folder of another model of the Toybox world.")
_OUT = flags.DEFINE_string("out", "docs/losses", "Folder for the table, the figures and the picture.")
_OBJECTS = flags.DEFINE_string(
    "objects", "outputs/evaluation", "Folder of the generated objects; finished ones are reused."
)


def main() -> None:
    """Run the trials one after the other, and write what they made."""
    from functools import partial

    from ge3d_jax.core.errors import UserError
    from ge3d_jax.core.files import atomic_path
    from ge3d_jax.guidance.losses import LOSSES
    from ge3d_jax.metrics.recognition import load_gallery
    from ge3d_jax.runs import compare
    from ge3d_jax.runs.evaluate import loss_name, make_object, model_fingerprint
    from ge3d_jax.runs.evaluation_prompts import check_prompts
    from ge3d_jax.runs.folder import prepare_folder, versions, write_json
    from ge3d_jax.runs.request import find_model
    from ge3d_jax.viewer.sheet import save_png

    if _TRIALS.value is not None and _LOSSES.value is not None:
        raise UserError("--losses and --trials both say what to compare; give one of them.")
    if _TRIALS.value is None:
        trials = [compare.Trial(loss_name(name)) for name in _LOSSES.value or LOSSES]
    else:
        file = Path(_TRIALS.value)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"The file of trials {file} cannot be read ({error}); give a text with a loss on each line."
            ) from error
        trials = compare.parse_trials(text, str(file))
    prompts = _PROMPTS.value or compare.PROMPTS
    check_prompts(prompts)
    out, weights = prepare_folder(_OUT.value), model_fingerprint(find_model(_MODEL.value))
    gallery = load_gallery(cache_folder(), report=print)
    rows, sides = [], []
    for number, trial in enumerate(trials, 1):
        print(f"{number}/{len(trials)} {trial.guidance} {trial.changes}", flush=True)
        figures, seen = compare.run_trial(
            trial,
            prompts,
            seed=_SEED.value,
            folder=Path(_OBJECTS.value) / weights,
            gallery=gallery,
            make=partial(make_object, model=_MODEL.value),
        )
        rows.append(figures)
        sides.append(seen)
        print(compare.markdown_table([figures]).splitlines()[-1], flush=True)
    figures = {"versions": versions(), "weights": weights, "seed": _SEED.value, "trials": rows}
    write_json(out / "comparison.json", figures)
    for name, text in (
        ("comparison.md", compare.markdown_table(rows)),
        ("comparison.csv", compare.csv_table(rows)),
    ):
        with atomic_path(out / name) as path:
            path.write_text(text, encoding="utf-8")
    save_png(out / "comparison.png", compare.picture(rows, sides))
    print(f"The comparison is in {out}")


if __name__ == "__main__":
    script.run(main)
