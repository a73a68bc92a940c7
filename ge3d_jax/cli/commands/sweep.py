"""Make an object of every prompt with every seed, and a page that shows them all.

    ge3d sweep --prompt="a red mushroom" --seeds=0-7
    ge3d sweep --prompts=prompts.txt --seeds=0-3

The seeds of a prompt are computed together, as one program. A file of prompts has one per line; settings of
its own may follow after a tab: "a red mushroom<tab>guidance.scale=10 iterations=400". In the folder
outputs/sweep-a-red-mushroom/, or --out, each object has a folder of its own, like those of generate. Beside
them are index.html (every turntable, to sort and filter; works offline), sweep.csv, and contact_sheet.png.

Ctrl-C saves the state of everything. The same command with --resume continues, tries again what failed, and
leaves alone what is finished. --resume may always be given, so that a scheduler can simply restart the
command.

Several processes can share the objects. Each is started with the same flags, except for the one that says
which process it is. On two machines, the first of which is 10.0.0.1, that is

    ge3d sweep --prompts=prompts.txt --coordinator=10.0.0.1:1234 --processes=2 --process=0
    ge3d sweep --prompts=prompts.txt --coordinator=10.0.0.1:1234 --processes=2 --process=1

With --share=views, all processes make one object after the other, each computing its share of the views;
process 0 writes the files. Under Slurm, MPI, Kubernetes, or on a cloud's cluster, --distributed finds all of
this out by itself:

    srun ge3d sweep --prompts=prompts.txt --seeds=0-9 --distributed --resume
"""

from typing import Any

from absl import flags

from ge3d_jax.cli import model_flags, rasterizer_flag, script, watching_flags

flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(rasterizer_flag)
flags.adopt_module_key_flags(watching_flags)

_PROMPT = flags.DEFINE_multi_string("prompt", [], "What to make; may be repeated.")
_PROMPTS = flags.DEFINE_string(
    "prompts", None, "A file of prompts instead, one per line, with settings after a tab."
)
_SEEDS = flags.DEFINE_string("seeds", "0", "Seeds of each prompt: numbers and ranges, e.g. 0-7,12.")
_PRESET = flags.DEFINE_string("preset", None, "As for ge3d generate.")
_GUIDANCE = flags.DEFINE_string("guidance", None, "The loss, with its settings for the preset.")
_DENSITY = flags.DEFINE_string(
    "density", None, "How the number of splats changes: clone_split, mcmc, relocate or replace_unseen."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/sweep-<prompt or file>.")
_START = flags.DEFINE_string("start", None, "What every object begins with; as for ge3d generate.")
_START_GROWTH = flags.DEFINE_string(
    "start_growth", None, "How points become more points; as for ge3d generate."
)
_RECONSTRUCT_FROM = flags.DEFINE_float(
    "reconstruct_from", None, "After this share of the iterations, e.g. 0.8, fit each object to edited views."
)
_ITERATIONS = flags.DEFINE_integer("iterations", None, "Number of iterations, instead of the preset's.")
_AT_A_TIME = flags.DEFINE_integer(
    "at_a_time",
    None,
    "At most this many seeds together; by default as many as fit into memory.",
    lower_bound=1,
)
_PREVIEW_EVERY = flags.DEFINE_integer(
    "preview_every", 25, "Iterations between previews; 0 for no previews.", lower_bound=0
)
_SAVE_SECONDS = flags.DEFINE_float(
    "save_seconds",
    30.0,
    "Seconds between saves of the state, for --resume; 0 saves after each iteration.",
    lower_bound=0,
)
_RESUME = flags.DEFINE_bool("resume", False, "Continue the sweep in the folder, if there is one.")
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting; may be repeated.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Share the objects with the other processes of the cluster's job."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Address and port of process 0, for --distributed.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.", lower_bound=0)
_SHARE = flags.DEFINE_enum(
    "share", "objects", ["objects", "views"], "What the processes divide: the objects, or the views of each."
)
_WAIT_SECONDS = flags.DEFINE_integer(
    "wait_seconds", 300, "How long to wait for the other processes at the start.", lower_bound=1
)


def main() -> int:
    """Run `ge3d_jax.sweep` with the flags and say where the page is."""
    from ge3d_jax.core.processes import Cluster
    from ge3d_jax.runs.sweep import sweep
    from ge3d_jax.runs.sweep_plan import parse_seeds

    overrides = script.parse_settings(_SET.value, iterations=_ITERATIONS.value) | rasterizer_flag.given()
    told: dict[str, Any] = {
        "coordinator": _COORDINATOR.value,
        "processes": _PROCESSES.value,
        "process": _PROCESS.value,
    }
    is_shared = _DISTRIBUTED.value or any(value is not None for value in told.values())
    # Report a missing package once, before anything else, rather than for every object.
    watching_flags.observers()
    result = sweep(
        _PROMPT.value or None,
        seeds=parse_seeds(_SEEDS.value),
        file=_PROMPTS.value,
        preset=_PRESET.value,
        guidance=_GUIDANCE.value,
        density=_DENSITY.value,
        out=_OUT.value,
        start=_START.value,
        start_growth=_START_GROWTH.value,
        reconstruct_from=_RECONSTRUCT_FROM.value,
        overrides=overrides,
        at_a_time=_AT_A_TIME.value,
        preview_every=_PREVIEW_EVERY.value,
        save_seconds=_SAVE_SECONDS.value,
        resume=_RESUME.value,
        progress=not watching_flags.quiet(),
        share=_SHARE.value,
        observers=watching_flags.observers,
        cluster=Cluster(**told, wait_seconds=_WAIT_SECONDS.value) if is_shared else None,
        **model_flags.given(),
    )
    say = watching_flags.say
    if result.interrupted:
        say("Stopped; the same command with --resume continues from here.")
        return script.EXIT_INTERRUPTED
    finished = sum(outcome.status == "finished" for outcome in result.outcomes)
    say(f"{finished} of {len(result.outcomes)} objects in {result.folder}/")
    say(f"  Look at them:  open {result.folder / 'index.html'} in a browser, or contact_sheet.png")
    say(f"  Numbers:       {result.folder / 'sweep.csv'}")
    failed = [
        f"{outcome.prompt}, seed {outcome.seed}, {outcome.status}: {outcome.reason}"
        for outcome in result.outcomes
        if outcome.status in ("failed", "diverged")
    ]
    return watching_flags.conclude(failed, failed=bool(failed), unwritten=result.unwritten)
