"""Presets: named base settings of a run.

`paper` has the settings of the published runs, and `paper/…` those of each published configuration with its
prompt; `toybox` scales them down to the bundled model and two CPU cores. `toybox_ball` starts from a gray
ball instead of Point-E's points, with settings that suit it; the figures that compare losses use it, since
points from Point-E would do part of the work for all of them.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from ge3d_jax.core.errors import UserError, shown
from ge3d_jax.core.settings import kind_of, setting_names, with_overrides
from ge3d_jax.guidance.losses import GE3D, LOSSES
from ge3d_jax.guidance.trajectories import Nodes
from ge3d_jax.scenes.clone_and_split import CloneAndSplit
from ge3d_jax.scenes.density import STRATEGIES
from ge3d_jax.scenes.scenes import Splats
from ge3d_jax.scenes.splats import SplatRates
from ge3d_jax.scenes.start.ball import Ball
from ge3d_jax.scenes.start.clouds import GROWTHS, CloudStart
from ge3d_jax.scenes.start.files import kind_of_file
from ge3d_jax.scenes.start.point_e.start import PointEStart
from ge3d_jax.scenes.start.starts import STARTS, is_named
from ge3d_jax.training.config import BackgroundConfig, CameraConfig, Config, PromptConfig
from ge3d_jax.training.reconstruction_config import Reconstruction

_Run = TypeVar("_Run", bound=Any)

# Presets named "paper/…" start from the settings of this one.
_PAPER = "paper"
# The paper's public configurations: name → (prompt, differences from `paper`). Each has a separate prompt for
# Point-E.
PUBLISHED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "paper/lantern": (
        "A decorative lantern, red, warm lighting, 8K, HDR",
        {
            "scene.start.prompt": "A lantern.",
            "guidance.nodes.jump_max": (110, 80),
            "guidance.nodes.jump_min": (100, 70),
            "guidance.nodes.max_step": (700, 400),
            "scene.density.reset_every": 500,
        },
    ),
    "paper/giraffe": (
        "A giraffe with a scarf, cozy, realistic, 8K, HDR.",
        {"scene.start.prompt": "A giraffe."},
    ),
    "paper/radio": (
        "A vintage radio, wooden case, retro design, 8K, HDR",
        {
            "scene.start.prompt": "A radio.",
            "guidance.nodes.jump_max": (80, 60),
            "guidance.nodes.jump_min": (60, 50),
            "scene.density.reset_every": 500,
        },
    ),
    "paper/stuffed_bunny": (
        "a soft stuffed toy bunny with long ears and a pink nose.",
        {
            "scene.start.prompt": "A bunny.",
            "guidance.nodes.jump_max": (80, 60),
            "guidance.nodes.jump_min": (60, 45),
            "guidance.dbc": False,
        },
    ),
    "paper/swarovski_earrings": (
        "Swarovski crystal earrings, photorealistic, 8K, HDR.",
        {
            "scene.start.prompt": "A Swarovski crystal earrings.",
            "guidance.nodes.jump_max": (80, 60),
            "guidance.nodes.jump_min": (70, 50),
        },
    ),
    "paper/captain_america": (
        "Captain America, head, photorealistic, 8K, HDR.",
        {"scene.start.prompt": "a man head."},
    ),
    "paper/black_widow": (
        "Black Widow in Marvel, head, photorealistic, 8K, HDR.",
        {"scene.start.prompt": "a woman head with hair.", "background.replaced": 0.3},
    ),
    # Density control ends at the same iteration as in the shorter runs.
    "paper/black_widow_2": (
        "Black Widow in Marvel, head, photorealistic, 8K, HDR.",
        {
            "scene.start.prompt": "a woman head with hair.",
            "iterations": 5000,
            "background.replaced": 0.3,
            "guidance.nodes.count": 8,
            "guidance.nodes.jump_max": (60, 50),
            "guidance.nodes.jump_min": (50, 40),
            "guidance.nodes.max_step": (450, 350),
            # The published width is 1000 iterations in runs of any length.
            "guidance.dbc_width": 0.2,
        },
    ),
}
# All others were generated with seed 0.
_SEEDS = {"paper/black_widow_2": 1}
_BASES = {"toybox64": "toybox", "toybox_ball": "toybox"}

PRESETS: dict[str, Config] = {
    _PAPER: Config(scene=Splats(start=PointEStart())),
    "toybox64": Config(
        iterations=250,
        views=4,
        image_size=64,
        # Small images need little memory.
        vae_rematerialize=False,
        total_variation=0.0,
        # With nodes up to 480 only, faces are missing.
        guidance=GE3D(nodes=Nodes(count=5, jump_max=(120, 60), jump_min=(90, 40), max_step=(600, 300))),
        # The small model reacts to Perp-Neg's negatives by erasing what all views share: arms, eyes, plates.
        prompts=PromptConfig(use_perp_neg=False, negative_prompt=""),
        cameras=CameraConfig(
            radius_begin=(3.35, 3.65),
            radius_end=(3.35, 3.65),
            fov_radians_begin=(0.5, 0.5),
            fov_radians_end=(0.5, 0.5),
            polar_degrees=(60.0, 80.0),
            azimuth_degrees_begin=180.0,
            azimuth_degrees_end=180.0,
            concentration=1.0,
            jitter_center=0.0,
            jitter_target=0.0,
            jitter_up=0.0,
        ),
        background=BackgroundConfig(replaced=0.5, random_share=1.0),
        scene=Splats(
            capacity=1600,
            buffer_capacity=2**14,
            scale_noise=0.0,
            scale_penalty=0.0,
            start=Ball(**Ball.presets["toybox64"]),
            learning_rates=SplatRates(
                position=(4e-3, 1e-3),
                color=(3e-2, 5e-3),
                opacity=(3e-2, 1e-2),
                scale=(7e-3, 2e-3),
                rotation=(7e-3, 2e-3),
            ),
            density=CloneAndSplit(every=0, reset_every=0),
        ),
        # The small model was trained on these cameras only.
        reconstruction=Reconstruction(
            rings=((78.0, 12), (70.0, 14), (62.0, 10)),
            radius_share=1.0,
            fov_radians=0.5,
            node_count=5,
            node_jumps=(40, 60),
            views_per_step=4,
            densify_every=0,
        ),
    ),
}
PRESETS["toybox_ball"] = with_overrides(
    PRESETS["toybox64"],
    {
        "iterations": 225,
        "image_size": 128,
        # The model's training range. With a narrower one, objects lean toward the middle of that range.
        "cameras.polar_degrees": (30.0, 90.0),
        "cameras.radius_begin": (3.5, 3.5),
        "cameras.radius_end": (3.5, 3.5),
        # The front first, then gradually all around: no text distinguishes left from right, so starting from
        # all sides at once makes some objects face both ways. After 25 iterations, all sides count equally.
        "cameras.azimuth_degrees_begin": 90.0,
        "cameras.widen_from": 10,
        "cameras.widen_every": 5,
        "cameras.widen_azimuth": 1.25,
        "prompts.use_overhead": True,
        "guidance.scale": 3.0,
        # The first jump adds random noise: long jumps early on let a wrong size be forgotten; short ones
        # later keep detail.
        "guidance.nodes.count": 3,
        "guidance.nodes.jump_max": (200, 40),
        "guidance.nodes.jump_min": (160, 28),
        "guidance.nodes.max_step": (600, 110),
        "picture_weight": 0.1,
        "scene.capacity": 6000,
        "scene.buffer_capacity": 2**16,
        **{f"start.{name}": value for name, value in Ball.presets["toybox"].items()},
        # Lower rates leave surfaces translucent.
        "scene.learning_rates.opacity": (0.1, 0.05),
        "scene.density.kind": "relocate",
        "scene.density.first": 45,
        "scene.density.last": 150,
        "scene.density.every": 15,
        "scene.density.share": 0.15,
        # About one pixel.
        "scene.density.split_scale": 0.013,
    },
)
PRESETS["toybox"] = with_overrides(
    PRESETS["toybox_ball"],
    {
        # The points already show the object, with its front: fewer iterations, less guidance, and cameras all
        # around from the beginning.
        "iterations": 150,
        "guidance.scale": 2.0,
        # Three jumps at first, so that a wrong size is forgotten; then two, and a single one at last: what
        # guidance adds at every jump accumulates over the iterations, and merges the eyes of robots.
        "guidance.nodes.jump_max": (200, 160),
        "guidance.nodes.jump_min": (160, 130),
        "guidance.nodes.max_step": (600, 161),
        # Sizes are decided while there are several jumps, and the error of the inversion gets them wrong.
        "guidance.inversion": "direct_if_several",
        "cameras.azimuth_degrees_begin": 180.0,
        "start.kind": "point_e",
        **{f"start.{name}": value for name, value in PointEStart.presets["toybox"].items()},
        # The points are coarse, and there is less time to correct them.
        "scene.learning_rates.position": (8e-3, 5e-4),
        "scene.learning_rates.color": (6e-2, 5e-3),
        "scene.learning_rates.scale": (1.4e-2, 2e-3),
        # As long as the first buffer, so that an iteration is compiled only once.
        "scene.capacity": 8192,
        "scene.density.kind": "replace_unseen",
        "scene.density.first": 30,
        "scene.density.last": 100,
        "scene.density.every": 10,
        "scene.density.split_scale": 0.008,
        # The variance of a pixel's own area. Viewers widen splats more, but show objects with more pixels
        # than these 128, where that closes no gaps.
        "scene.dilation": 1 / 12,
    },
)
PRESETS |= {name: with_overrides(PRESETS[_PAPER], changes) for name, (_, changes) in PUBLISHED.items()}


def preset(name: str) -> Config:
    """Return the preset with this name. Raises UserError listing the existing presets."""
    if name not in PRESETS:
        raise UserError(f"The preset {shown(name)} does not exist; use one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def prompt_of(name: str) -> str | None:
    """Return the prompt of the preset with this name; None if it has none of its own."""
    return PUBLISHED[name][0] if name in PUBLISHED else None


def seed_of(name: str) -> int:
    """Return the seed of the preset with this name."""
    return _SEEDS.get(name, 0)


def _base_name(name: str) -> str:
    """Return the name of the preset that this one is a variant of, or its own; losses know only those."""
    return _BASES.get(name, name.partition("/")[0])


def configured(
    preset_name: str,
    *,
    guidance: str | None = None,
    density: str | None = None,
    start: str | None = None,
    growth: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Build the settings of a run.

    Args:
        preset_name: the preset to start from.
        guidance: name of a loss, which brings its own run settings; None for the preset's loss.
        density: name of a density control strategy, likewise.
        start, growth: see `with_start`.
        overrides: settings to change, by dotted name.

    Raises:
        UserError: a preset, loss, or setting that does not exist, or an invalid value.
    """
    config = preset(preset_name)
    if guidance is not None:
        if guidance not in LOSSES:
            raise UserError(f"The loss {shown(guidance)} does not exist; use one of {', '.join(LOSSES)}.")
        chosen = LOSSES[guidance].presets.get(_base_name(preset_name), {})
        config = with_overrides(config, {"guidance.kind": guidance, **_no_pictures(guidance), **chosen})
    if density is not None:
        config = with_density(config, density, preset_name, overrides or {})
    config = with_start(config, preset_name, start=start, growth=growth)
    overrides = overrides or {}
    return with_overrides(config, {**_no_pictures(overrides.get("guidance.kind")), **overrides})


def _no_pictures(loss: Any) -> dict[str, float]:
    """Return the override that turns off `picture_weight` if the named loss defines no target images."""
    known = isinstance(loss, str) and loss in LOSSES
    return {"picture_weight": 0.0} if known and LOSSES[loss]().steps_to_target is None else {}


def with_start(config: _Run, preset_name: str, *, start: str | None, growth: str | None = None) -> _Run:
    """Return the settings with another start.

    Args:
        config: settings of a run.
        preset_name: the preset whose settings for the start apply.
        start: "ball", "box" or "point_e", or the path of a splat file, a point cloud, or a mesh; None keeps
            the start of `config`.
        growth: how points are multiplied, a key of GROWTHS; None for the start's default.

    Raises:
        UserError: a start or growth that does not exist, or a file that is none of the above.
    """
    if start is not None:
        named = is_named(start)
        kind = start if named else kind_of_file(start)
        changes: dict[str, Any] = {"kind": kind, **({} if named else {"file": start})}
        before = config
        if kind != kind_of(config, "scene.start"):
            own = STARTS[kind].presets
            changes |= own.get(preset_name, own.get(_base_name(preset_name), {}))
        config = with_overrides(config, {f"scene.start.{name}": value for name, value in changes.items()})
        if "scene.start.sh_degree" in setting_names(config):
            # Keep the degree that the loss asks for.
            degree = before.scene.start.sh_degree
            config = with_overrides(config, {"scene.start.sh_degree": degree})
    if growth is None:
        return config
    if growth not in GROWTHS:
        raise UserError(f"The growth {shown(growth)} does not exist; use one of {', '.join(GROWTHS)}.")
    if not isinstance(config.scene.start, CloudStart):
        raise UserError(
            f"The growth {shown(growth)} is for points, but the start is {kind_of(config, 'scene.start')}; "
            "omit it, or start from point_e, a point cloud, or a mesh."
        )
    with_it = {"growth.kind": growth, **GROWTHS[growth].with_it}
    return with_overrides(config, {f"scene.start.{name}": value for name, value in with_it.items()})


def with_density(config: _Run, kind: str, preset_name: str, overrides: Mapping[str, Any]) -> _Run:
    """Return the settings with another density control; if `config` has none, it acts ten times per run.

    Args:
        config: settings of a run or of a fit.
        kind: name of the strategy.
        preset_name: the preset whose settings for the strategy apply.
        overrides: other settings that will be changed; their number of iterations determines the interval.

    Raises:
        UserError: a kind that does not exist.
    """
    if kind not in STRATEGIES:
        raise UserError(
            f"The density control {shown(kind)} does not exist; use one of {', '.join(STRATEGIES)}."
        )
    iterations = with_overrides(config, {"density.kind": kind, **overrides}).iterations
    density = config.scene.density
    every = density.every or max(1, iterations // 10)
    first, last = (density.first, density.last) if density.every else (every, iterations - every)
    schedule = {"density.every": every, "density.first": first, "density.last": last}
    chosen = STRATEGIES[kind].presets.get(_base_name(preset_name), {})
    return with_overrides(config, {"density.kind": kind, **schedule, **chosen})
