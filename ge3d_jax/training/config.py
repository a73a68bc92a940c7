"""Every setting of a run, as one tree of frozen dataclasses, with the two presets.

The defaults are the settings of the published runs (arXiv 2412.05929 and its public implementation); the
`toybox` preset scales them to the bundled model and two processor cores. A setting is addressed by its dotted
name, `cameras.radius_begin`. Ranges are (low, high); `…_begin` and `…_end` are annealed over the run.
"""

import dataclasses
import json
import math
from typing import Any

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import setting_names, with_overrides

Range = tuple[float, float]
Color = tuple[float, float, float]

PUBLISHED_NEGATIVE_PROMPT = (
    "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, low-resolution."
)
NOISING_PROMPTS = ("negative", "empty")
DENSITY_KINDS = ("clone_split", "mcmc")


@dataclasses.dataclass(frozen=True)
class NodeConfig:
    """Time nodes of the trajectories; the pairs are (at the start, at the end) of the run, linear between.

    Each jump is uniform on jump_min … jump_max − 1; no node passes max_step.
    """

    count: int = 6
    jump_max: tuple[int, int] = (80, 50)
    jump_min: tuple[int, int] = (60, 30)
    max_step: tuple[int, int] = (480, 300)


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """What the text asks for and how strongly.

    `noising_prompt` is the ∅ of the noising trajectory: the negative prompt (as the public code) or the
    empty one (as the paper's text). `dbc_width` is σ of the balancing weights as a share of the iterations.
    `offset_noise` is the strength of the noise that is constant over each channel of the image.
    """

    scale: float = 7.5
    use_perp_neg: bool = True
    perp_neg_weight: float = -2.0
    negative_prompt: str = PUBLISHED_NEGATIVE_PROMPT
    noising_prompt: str = "negative"
    offset_noise: float = 0.1
    dbc_width: float = 1 / 3


@dataclasses.dataclass(frozen=True)
class CameraConfig:
    """Cameras on a sphere around the origin; polar angle from +z, azimuth 0 in front of the object.

    From iteration `widen_from`, every `widen_every`, the ranges are multiplied by the `widen_…` factors until
    they reach their `…_end`. `concentration` is the power of u in middle ± half-range·u^power. Jitters are in
    world units: centre uniform within ±, target and up normal.
    """

    radius_begin: Range = (5.2, 5.5)
    radius_end: Range = (3.5, 5.0)
    fov_radians_begin: Range = (0.32, 0.60)
    fov_radians_end: Range = (0.16, 0.60)
    polar_degrees: Range = (45.0, 90.0)
    azimuth_degrees_begin: float = 80.0
    azimuth_degrees_end: float = 180.0
    widen_from: int = 100
    widen_every: int = 100
    widen_radius: float = 0.95
    widen_fov: Range = (0.75, 1.1)
    widen_azimuth: float = 1.5
    concentration: float = 1.5
    jitter_center: float = 0.05
    jitter_target: float = 0.05
    jitter_up: float = 0.01


@dataclasses.dataclass(frozen=True)
class BackgroundConfig:
    """Colour behind the splats; with probability `replaced` another: random, or else black."""

    color: Color = (1.0, 1.0, 1.0)
    replaced: float = 0.3
    random_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Flip of the whole batch, and noise on the splats' scales: × (1 + N(0, 1)·scale_noise)."""

    flip_probability: float = 0.5
    scale_noise: float = math.sqrt(0.2) / 4


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """A ball of grey splats. `scale` None: the RMS distance to the three nearest neighbours."""

    count: int = 100_000
    radius: float = 0.5
    scale: float | None = None
    opacity: float = 0.1
    gray: float = 0.5
    sh_degree: int = 0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam; each learning rate is (first iteration, last), log-linear between. Positions in world units.

    The colour's bands above degree 0 learn `higher_bands` times as fast as the first.
    """

    position: Range = (2e-4 * 3.5, 1.6e-6 * 3.5)
    color: Range = (0.01, 0.003)
    opacity: Range = (0.05, 0.05)
    scale: Range = (0.005, 0.001)
    rotation: Range = (0.001, 0.0002)
    higher_bands: float = 1.0
    epsilon: float = 1e-15


@dataclasses.dataclass(frozen=True)
class DensityConfig:
    """How the number of splats changes; `every` 0: it does not.

    `kind` clone_split: clone, split, prune and opacity reset (Kerbl et al. 2023). `gradient_threshold` is in
    NDC units: the pixel gradient × image size / 2, averaged over visible views. Scales are world units.
    `reset_every` 0: no opacity reset.

    `kind` mcmc: splats as samples of a Markov chain (Kheradmand et al. 2024). Those fainter than
    `prune_opacity` move to others, and `growth` more come each time until `splat_capacity` is reached.
    `noise` on the positions is relative to their learning rate; `opacity_penalty` and `scale_penalty` weigh
    the mean opacity and the mean scale in the loss.
    """

    kind: str = "clone_split"
    first: int = 200
    last: int = 2900
    every: int = 100
    gradient_threshold: float = 7.5e-4
    clone_scale: float = 0.003 * 3.5
    prune_opacity: float = 0.005
    prune_scale: float = 0.35
    reset_every: int = 300
    reset_opacity: float = 0.01
    growth: float = 0.05
    noise: float = 5e5
    opacity_penalty: float = 0.01
    scale_penalty: float = 0.01

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        if self.kind not in DENSITY_KINDS:
            raise UserError(
                f"The setting density.kind is {self.kind!r}; use one of {', '.join(DENSITY_KINDS)}."
            )
        for name in ("every", "reset_every", "growth", "noise", "opacity_penalty", "scale_penalty"):
            value = getattr(self, name)
            if value < 0:
                raise UserError(f"The setting density.{name} is {value}, but at least 0 is needed; raise it.")

    @property
    def is_mcmc(self) -> bool:
        """Whether splats are samples of a Markov chain."""
        return self.kind == "mcmc"

    def densifies_at(self, done: int) -> bool:
        """Whether density control follows the iteration that makes it `done` in all."""
        return self.every > 0 and self.first <= done <= self.last and done % self.every == 0

    def resets_at(self, done: int) -> bool:
        """Whether an opacity reset follows it."""
        resets = self.reset_every > 0 and not self.is_mcmc
        return resets and done <= self.last and done % self.reset_every == 0

    def prunes_large_at(self, done: int) -> bool:
        """Whether splats above `prune_scale` go too: only once opacities have been reset."""
        return self.reset_every > 0 and done > self.reset_every


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights: of the residual handed to the latent, of total variation, of the mean scale."""

    residual: float = 0.1
    total_variation: float = 1.0
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run but the model, the prompt and the seed.

    `splat_capacity` bounds the number of splats; their buffer grows towards it by itself. `buffer_capacity`
    is where the intersection buffer of one view starts, it grows too.

    Three settings trade time for memory and change nothing else. With `vae_rematerialise` the VAE encodes one
    view at a time (one on each device) and computes what it needs for the gradient again instead of keeping
    it for all views. `views_per_batch` views go through all networks at a time (null: all of them); at 1 the
    former changes nothing more. Attention where the GPU has no fast one takes at most `attention_chunk`
    queries at a time, fewer for large batches.
    """

    iterations: int = 3000
    views: int = 4
    image_size: int = 512
    splat_capacity: int = 400_000
    buffer_capacity: int = 2**21
    views_per_batch: int | None = None
    attention_chunk: int = 1024
    vae_rematerialise: bool = True
    nodes: NodeConfig = NodeConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    cameras: CameraConfig = CameraConfig()
    background: BackgroundConfig = BackgroundConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    start: StartConfig = StartConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    density: DensityConfig = DensityConfig()
    loss: LossConfig = LossConfig()

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        nodes, cameras = self.nodes, self.cameras
        least = {
            "iterations": (self.iterations, 1),
            "views": (self.views, 1),
            "image_size": (self.image_size, 1),
            "buffer_capacity": (self.buffer_capacity, 1),
            "views_per_batch": (self.views_per_pass, 1),
            "attention_chunk": (self.attention_chunk, 1),
            "nodes.count": (nodes.count, 1),
            "nodes.jump_min": (min(nodes.jump_min), 1),
            "cameras.widen_every": (cameras.widen_every, 1),
            "start.count": (self.start.count, 1),
            "splat_capacity": (self.splat_capacity, self.start.count),
        }
        for name, (value, bound) in least.items():
            if value < bound:
                raise UserError(f"The setting {name} is {value}, but at least {bound} is needed; raise it.")
        if self.views % self.views_per_pass:
            raise UserError(
                f"The setting views_per_batch is {self.views_per_batch}, which does not divide views, "
                f"{self.views}; give one that does, as 1."
            )
        for name, radii in (("radius_begin", cameras.radius_begin), ("radius_end", cameras.radius_end)):
            if radii[0] <= 0:
                raise UserError(f"The setting cameras.{name} starts at {radii[0]}; give radii above 0.")
        if any(low >= high for low, high in zip(nodes.jump_min, nodes.jump_max, strict=True)):
            raise UserError(
                f"The setting nodes.jump_max {nodes.jump_max} does not lie above nodes.jump_min "
                f"{nodes.jump_min}; raise it."
            )
        if any(jump > bound for jump, bound in zip(nodes.jump_max, nodes.max_step, strict=True)):
            raise UserError(
                f"The setting nodes.max_step {nodes.max_step} leaves no room for one jump of "
                f"{nodes.jump_max}; raise it."
            )
        for name, fovs in (
            ("fov_radians_begin", cameras.fov_radians_begin),
            ("fov_radians_end", cameras.fov_radians_end),
        ):
            if not 0 < min(fovs) <= max(fovs) < math.pi:
                raise UserError(f"The setting cameras.{name} is {fovs}; give angles between 0 and π.")
        if self.guidance.dbc_width <= 0:
            raise UserError(
                f"The setting guidance.dbc_width is {self.guidance.dbc_width}; give a share of the "
                "iterations above 0."
            )
        if self.guidance.noising_prompt not in NOISING_PROMPTS:
            raise UserError(
                f"The setting guidance.noising_prompt is {self.guidance.noising_prompt!r}; "
                f"use one of {', '.join(NOISING_PROMPTS)}."
            )
        for field in dataclasses.fields(self.optimizer):
            value = getattr(self.optimizer, field.name)
            if min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise UserError(f"The setting optimizer.{field.name} is {value}; give numbers above 0.")

    @property
    def views_per_pass(self) -> int:
        """How many views go through the networks at a time."""
        return self.views if self.views_per_batch is None else self.views_per_batch


PRESETS: dict[str, Config] = {
    "paper": Config(),
    "toybox": Config(
        iterations=250,
        views=4,
        image_size=64,
        splat_capacity=1600,
        # A small picture takes little memory.
        vae_rematerialise=False,
        buffer_capacity=2**14,
        # Nodes that end at 480 leave faces out.
        nodes=NodeConfig(count=5, jump_max=(120, 60), jump_min=(90, 40), max_step=(600, 300)),
        # The small model answers Perp-Neg's negatives by wiping out what all views share: arms, eyes, plates.
        guidance=GuidanceConfig(use_perp_neg=False, negative_prompt=""),
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
        augmentation=AugmentationConfig(scale_noise=0.0),
        start=StartConfig(count=1600, radius=0.5, scale=0.042, opacity=0.27),
        optimizer=OptimizerConfig(
            position=(4e-3, 1e-3),
            color=(3e-2, 5e-3),
            opacity=(3e-2, 1e-2),
            scale=(7e-3, 2e-3),
            rotation=(7e-3, 2e-3),
        ),
        # The noise goes with the learning rate, which is higher here than where its default comes from.
        density=DensityConfig(every=0, reset_every=0, noise=1e4),
        loss=LossConfig(total_variation=0.0, scale=0.0),
    ),
}


def density_overrides(config: Any, kind: str) -> dict[str, Any]:
    """The settings to change for density control of a kind; where `config` has none, ten times in the run.

    Raises:
        UserError: a kind that does not exist.
    """
    overrides: dict[str, Any] = {"density.kind": kind}
    if config.density.every == 0:
        every = max(1, config.iterations // 10)
        overrides |= {"density.every": every, "density.first": every}
        overrides |= {"density.last": config.iterations - every}
    return overrides


def preset(name: str) -> Config:
    """The preset of that name. Raises UserError naming the presets there are."""
    if name not in PRESETS:
        raise UserError(f"The preset {name!r} does not exist; use one of {', '.join(sorted(PRESETS))}.")
    return PRESETS[name]


def to_json(config: Config) -> str:
    """Every setting, as indented JSON nested like the tree."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """Read what `to_json` wrote.

    Raises:
        UserError: text that is no JSON object; unknown or missing settings, named.
    """
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"The configuration is not JSON ({error}); give a config.json of a run.") from None
    if not isinstance(tree, dict):
        raise UserError("The configuration is not a JSON object; give a config.json of a run.")
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(
            {f"{name}.{leaf}": v for leaf, v in value.items()} if isinstance(value, dict) else {name: value}
        )
    config = with_overrides(PRESETS["paper"], flat)
    missing = [name for name in setting_names(config) if name not in flat]
    if missing:
        raise UserError(f"The configuration lacks the setting {missing[0]}; add it, or start from a preset.")
    return config
