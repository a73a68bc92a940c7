"""Fit splats to pictures with known cameras: 3D Gaussian Splatting, without any diffusion.

    ge3d render-toybox --prompt="a red mushroom" --out=outputs/mushroom-images
    ge3d fit --images=outputs/mushroom-images

With 64 pictures of 128 pixels, this takes about two minutes on two CPU cores; a bar shows the progress.
--images is a folder in the layout of NeRF's synthetic scenes (transforms_train.json and
transforms_test.json), or of nerfstudio and instant-ngp (one transforms.json; every eighth picture is held
out). The pictures must be undistorted and all of one size, with the object around the origin.

The folder outputs/fit-mushroom-images/ then holds the splats (object.ply), a page to turn them in a browser
(viewer.html), a turntable, a sheet of views (views.png), held-out pictures above their renders
(comparison.png), the PSNR and SSIM of these (held_out.json), and all settings and measurements (config.json,
metrics.jsonl). Ctrl-C keeps the splats as they stand; the same command with --resume continues from there.

--density=mcmc keeps to a budget of splats instead of cloning and splitting (--set=scene.capacity=8000). Every
setting in config.json can be changed: --set=start.sh_degree=3. For large pictures: --downscale=4.
"""

from absl import flags

from ge3d_jax.cli import live_flags, rasterizer_flag, script, watching_flags

flags.adopt_module_key_flags(live_flags)
flags.adopt_module_key_flags(rasterizer_flag)
flags.adopt_module_key_flags(watching_flags)

_IMAGES = flags.DEFINE_string("images", None, "Folder with the pictures and their cameras.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "Same seed, same splats.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder to write to; by default outputs/fit-<folder of the pictures>."
)
_DOWNSCALE = flags.DEFINE_integer("downscale", 1, "Make the pictures this many times smaller.")
_ITERATIONS = flags.DEFINE_integer("iterations", None, "Number of iterations.")
_DENSITY = flags.DEFINE_string(
    "density",
    None,
    "clone_split, the default, or mcmc, relocate or replace_unseen, which keep to a budget.",
)
_SAVE_SECONDS = flags.DEFINE_float(
    "save_seconds",
    30.0,
    "Seconds between saves of the state, for --resume; 0 saves after each iteration.",
    lower_bound=0,
)
_RESUME = flags.DEFINE_bool("resume", False, "Continue the interrupted run in the folder.")
_MESH = flags.DEFINE_bool("mesh", False, "Also write mesh.glb, a textured mesh; see ge3d mesh.")
_SET = flags.DEFINE_multi_string("set", [], "name=value changes a setting; may be repeated.")


def main() -> int:
    """Run `fit_images` with the flags and say where the files are."""
    overrides = script.parse_settings(_SET.value, iterations=_ITERATIONS.value) | rasterizer_flag.given()

    from ge3d_jax.runs.fit import fit_images

    result = fit_images(
        _IMAGES.value,
        seed=_SEED.value,
        out=_OUT.value,
        downscale=_DOWNSCALE.value,
        density=_DENSITY.value,
        overrides=overrides,
        save_seconds=_SAVE_SECONDS.value,
        resume=_RESUME.value,
        mesh=_MESH.value,
        progress=not watching_flags.quiet(),
        observers=[*watching_flags.observers(), *live_flags.observers()],
    )
    say = watching_flags.say
    if result.interrupted:
        say(f"Stopped after {result.iterations} iterations; these are the splats as they stand.")
        say("The same command with --resume continues from here.")
    say(f"{int(result.gaussians.mask.sum())} splats in {result.folder}/")
    say(f"Held-out pictures: PSNR {result.psnr:.2f} dB, SSIM {result.ssim:.4f}")
    say(f"  Look at it now:    {result.folder / 'comparison.png'}, views.png or turntable.mp4")
    say(f"  Turn it yourself:  open {result.folder / 'viewer.html'} in a browser")
    return watching_flags.conclude(result.advice, failed=result.diverged, unwritten=result.unwritten)
