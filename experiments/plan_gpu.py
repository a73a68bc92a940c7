"""Plan what a run will take on a graphics card, without the card.

    make plan-gpu GPU=h100

This compiles an iteration for that card, from shapes alone. It says how much memory the iteration takes and
whether that fits, how many kernels it launches, and how many bytes they move and how many operations they
compute, part by part, with the least time that the card's bandwidth and arithmetic allow. That time is a
lower bound: nothing is measured. It takes some minutes; the plan goes to --out, as JSON.

Or, in the environment that make has created:

    .venv-gpu-plan/bin/python experiments/plan_gpu.py --gpu=rtx4090 --guidance=sds --splats=400000

--gpu names one of h100, a100, a6000, rtx4090, rtx3060, or a .txtpb file that describes another card like
those in experiments/gpu_plan/cards. --tables makes those rows of docs/benchmarks/gpu_plan that are missing,
some minutes each; if interrupted, the same command continues.
"""

from absl import flags

from ge3d_jax.cli import script

_GPU = flags.DEFINE_string("gpu", "h100", "The card: a name, or a .txtpb file. A wrong name lists them.")
_PRESET = flags.DEFINE_string("preset", "paper", "The preset of the run, e.g. paper or toybox.")
_GUIDANCE = flags.DEFINE_string("guidance", None, "The loss, with its settings; by default the preset's.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "What the networks compute in.")
_SPLATS = flags.DEFINE_integer(
    "splats", None, "Splats to begin with; by default the preset's.", lower_bound=1
)
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting; may be repeated.")
_FOV = flags.DEFINE_multi_float(
    "fov",
    [0.46, 0.30, 0.16],
    "Field of view to count the renderer's steps for, radians; may be repeated.",
    lower_bound=0.01,
    upper_bound=3.0,
)
_OUT = flags.DEFINE_string("out", "outputs/gpu_plan", "Folder for the JSON files and their page.")
_TABLES = flags.DEFINE_bool(
    "tables", False, "Make all rows of the published tables that are missing in --out."
)


def main() -> None:
    """Compile, print and write."""
    from gpu_plan import compiling

    compiling.prepare()
    from gpu_plan import report, rows

    from ge3d_jax.runs.folder import prepare_folder

    fovs = _FOV.value
    folder = prepare_folder(_OUT.value)
    if _TABLES.value:
        of_one = (_GPU, _PRESET, _GUIDANCE, _DTYPE, _SPLATS, _SET)
        script.refuse([flag.name for flag in of_one if flag.present], where="--tables")
        for row in rows.published():
            if not report.path_of(row.asked, folder).exists():
                print(f"  {report.save(row.made(fovs), folder)}", flush=True)
        return
    row = rows.Row(
        card=_GPU.value,
        preset=_PRESET.value,
        guidance=_GUIDANCE.value,
        dtype=_DTYPE.value,
        splats=_SPLATS.value,
        settings=tuple(script.parse_settings(_SET.value).items()),
    )
    content = row.made(fovs)
    report.print_plan(content)
    print(f"  The numbers:  {report.save(content, folder)}")


if __name__ == "__main__":
    script.run(main)
