"""Every flag arrives where it belongs: in place of a command's function, one notes its arguments."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECORDED = """
import importlib, json, sys

def note(*arguments, **settings):
    settings["arguments"] = arguments
    print(json.dumps(settings, default=str))
    sys.exit(0)

setattr(importlib.import_module(sys.argv[1]), sys.argv[2], note)
sys.argv[:3] = ["ge3d"]
from ge3d_jax.cli.program import main
sys.exit(main())
"""

# (module and name of the function, command, what each flag becomes).
CASES = {
    "show along a path": (
        ("ge3d_jax.runs.show", "render_splats"),
        {
            "--splats=a.ply": {"arguments": ["a.ply"]},
            "--cameras=c.json": {"camera_path": "c.json"},
            # The page has cameras of its own.
            "--elevation=15": {"elevation_degrees": 15.0},
        },
    ),
    "show": (
        ("ge3d_jax.runs.show", "render_splats"),
        {
            "--splats=a.ply": {"arguments": ["a.ply"]},
            "--out=b.png": {"out": "b.png"},
            "--frames=11": {"frames": 11},
            "--views=12": {"views": 12},
            "--fps=13": {"fps": 13},
            "--size=64x32": {"size": [64, 32]},
            "--azimuth=14": {"azimuth_degrees": 14.0},
            "--elevation=15": {"elevation_degrees": 15.0},
            "--radius=16": {"radius": 16.0},
            "--fov=17": {"fov_degrees": 17.0},
            "--up=-y": {"up": "-y"},
            "--background=black": {"background": [0.0, 0.0, 0.0]},
            "--antialiased": {"antialiased": True},
            "--rasterizer=xla": {"rasterizer": "xla"},
        },
    ),
    "generate": (
        ("ge3d_jax.runs.generate", "generate"),
        {
            "--prompt=a red pig": {"arguments": ["a red pig"]},
            "--preset=toybox64": {"preset": "toybox64"},
            "--guidance=sds": {"guidance": "sds"},
            "--density=mcmc": {"density": "mcmc"},
            "--seed=11": {"seed": 11},
            "--out=a": {"out": "a"},
            "--start=ball": {"start": "ball"},
            "--edit_from=a red cat": {"edit_from": "a red cat"},
            "--start_growth=clones": {"start_growth": "clones"},
            "--reconstruct_from=0.4": {"reconstruct_from": 0.4},
            "--preview_every=12": {"preview_every": 12},
            "--save_seconds=13": {"save_seconds": 13.0},
            "--resume": {"resume": True},
            "--mesh": {"mesh": True},
            "--quiet": {"progress": False, "observers": []},
            "--model=b": {"model": "b"},
            "--dtype=bfloat16": {"dtype": "bfloat16"},
            "--lora=c": {"loras": [["c", 1.0]]},
            "--textual_inversion=d": {"textual_inversions": ["d"]},
            "--iterations=14": {},
            "--set=views=15": {},
            "--shared_nodes": {"overrides": {"iterations": "14", "views": "15", "shared_nodes": True}},
            "--config=e": {"config": "e"},
        },
    ),
    "fit": (
        ("ge3d_jax.runs.fit", "fit_images"),
        {
            "--images=a": {"arguments": ["a"]},
            "--seed=11": {"seed": 11},
            "--out=b": {"out": "b"},
            "--downscale=2": {"downscale": 2},
            "--density=mcmc": {"density": "mcmc"},
            "--save_seconds=13": {"save_seconds": 13.0},
            "--resume": {"resume": True},
            "--mesh": {"mesh": True},
            "--quiet": {"progress": False, "observers": []},
            "--iterations=14": {"overrides": {"iterations": "14"}},
        },
    ),
    "edit a picture": (
        ("ge3d_jax.runs.edit", "edit_2d"),
        {"--prompt=a red pig": {"arguments": ["a red pig"]}, "--image=a": {"image": "a"}},
    ),
    "edit": (
        ("ge3d_jax.runs.edit", "edit_2d"),
        {
            "--prompt=a red pig": {"arguments": ["a red pig"]},
            "--source_prompt=a red cat": {"source_prompt": "a red cat"},
            "--azimuth=11": {"azimuth_degrees": 11.0},
            "--negative_prompt=a dog": {"negative_prompt": "a dog"},
            "--max_step=12": {"max_step": 12},
            "--nodes=13": {"nodes": 13},
            "--guidance_scale=14": {"guidance_scale": 14.0},
            "--out=b": {"out": "b"},
        },
    ),
    "edit by methods": (
        ("ge3d_jax.runs.edit_by_method", "edit_by_method"),
        {
            "--prompt=a red pig": {"arguments": ["a red pig"]},
            "--method=direct, npi": {"methods": ["direct", "npi"]},
            "--source_prompt=a red cat": {"source_prompt": "a red cat"},
            "--azimuth=11": {"azimuth_degrees": 11.0},
            "--words=red x2": {"words": "red x2"},
            "--blend=pig": {"blend": "pig"},
            "--form=replace": {"form": "replace"},
            "--cross=0.2": {"cross": 0.2},
            "--self_attention=0.3": {"self_attention": 0.3},
            "--seed=12": {"seed": 12},
            "--guidance_scale=14": {"overrides": {"scale": 14.0}},
        },
    ),
    "sample": (
        ("ge3d_jax.runs.sample", "sample_to_folder"),
        {
            "--prompt=a red pig": {},
            "--prompt=a red cat": {"arguments": [["a red pig", "a red cat"]]},
            "--negative_prompt=a dog": {"negative_prompt": "a dog"},
            "--steps=11": {"steps": 11},
            "--guidance=12": {"guidance_scale": 12.0},
            "--seed=13": {"seed": 13},
            "--count=14": {"count": 14},
            "--size=64": {"size": 64},
            "--out=a": {"out": "a"},
        },
    ),
    "point-cloud": (
        ("ge3d_jax.runs.point_cloud", "point_cloud"),
        {
            "--prompt=a red pig": {"arguments": ["a red pig"]},
            "--seed=11": {"seed": 11},
            "--model=a": {"model": "a"},
            "--clip=b": {"clip": "b"},
            "--mirrored": {"mirrored": True},
            "--out=c": {"out": "c"},
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_flags_arrive_where_they_belong(name):
    (module, function), flags = CASES[name]
    done = subprocess.run(
        [sys.executable, "-c", RECORDED, module, function, name.split()[0], *flags],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for flag, wanted in flags.items():
        for setting, value in wanted.items():
            assert told[setting] == value, flag
