"""VSD, variational score distillation: away from the pictures that the scene already gives, to the text's.

| symbol | meaning |
|---|---|
| z, x_t | latents of the rendered views; x_t = √ᾱ_t·z + √(1−ᾱ_t)·ε |
| ε̂(s) | guided prediction of the frozen network, for the prompt with words for the view |
| ε_φ | prediction of the second network, for the prompt without them and for the camera |
| φ | what is learned: LoRA on the frozen network's attention, and an embedding of the camera |
| B | views of the iteration |

The gradient for z is (1−ᾱ_t)·(ε̂(s) − ε_φ)/B, at a time t of each view's own. φ learns beside the scene, one
step in each iteration: it predicts the noise in the same latents at another t of their own, and its loss is
the mean squared error of what the network gives, ε or v. Now and then all cameras it is shown are zeros.

Source: Wang et al., "ProlificDreamer", arXiv 2305.16213, as threestudio publishes it. That t is at most 500
after 5 000 iterations holds in the paper and is threestudio's default; its configuration of the first stage
sets the bound back to 980. The scene there is a NeRF, seen by one view in each iteration.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws, normal
from ge3d_jax.core.settings import check_at_least, choice
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.networks.adapters import (
    CAMERA_NUMBERS,
    Adapter,
    embed_camera,
    init_camera_embedding,
    init_lora,
)
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.diffusion.schedule import NoiseSchedule, add_noise
from ge3d_jax.guidance.annealing import STEPS
from ge3d_jax.guidance.base import DrawKeys, Numbers, Progress, SeenViews, hand_over
from ge3d_jax.guidance.one_step import OneStepLoss, check_share, half_square
from ge3d_jax.guidance.times import TIMES, Times, UniformTimes
from ge3d_jax.splatting.cameras import Camera, opengl_camera_to_world

# Of AdamW: threestudio's configuration of ProlificDreamer names them for all that is trained.
_BETAS = (0.9, 0.99)
_EPSILON = 1e-15


def camera_numbers(cameras: Camera) -> jax.Array:
    """(B, 16): the camera-to-world matrices of B cameras in OpenGL axes, row after row, in world units."""
    return jax.vmap(opengl_camera_to_world)(cameras).reshape(-1, CAMERA_NUMBERS)


def output_errors(schedule: NoiseSchedule, epsilon: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """Mean squared error of what the network gives in each view, of ε or of v.

    A network that gives v̂ predicts ε̂ = √ᾱ_t·v̂ + √(1−ᾱ_t)·x_t, and so does v of ε: ε̂ − ε = √ᾱ_t·(v̂ − v). The
    error in v is therefore that in ε over √ᾱ_t; taking v̂ out of ε̂ first would round once more.

    Args:
        schedule: says which of the two it is.
        epsilon: (B, h, w, C), predicted at t.
        noise: (B, h, w, C), the noise that is there.
        t: (B,).

    Returns:
        (B,).
    """
    errors = jnp.mean((epsilon - noise) ** 2, axis=(1, 2, 3))
    return errors / schedule.alphas_cumprod[t] if schedule.prediction_type == "v_prediction" else errors


@dataclasses.dataclass(frozen=True)
class VSD(OneStepLoss):
    """Variational score distillation.

    Attributes:
        scale: s of the guided prediction.
        times: those at which latents are led; φ learns at all there are.
        rank: r of LoRA.
        learning_rate: of φ.
        weight_decay: of φ. threestudio names none, so that PyTorch's default for AdamW is what it runs with.
        camera_dropout: how often φ learns without the camera; ε_φ always has it.
        shared: whether the seeds of a sweep that are computed together share φ, as the particles of the paper
            do. It changes nothing for a single object.
    """

    may_mirror: ClassVar[bool] = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Iterations, views, texts, and that pictures have no penalty are threestudio's. Its cameras and rates
        # are a NeRF's and stay out. The number of splats changes as in 3D Gaussian Splatting's published runs
        # of 30 000 iterations (Kerbl et al. 2023).
        "paper": {
            "iterations": 25_000,
            "views": 1,
            "flip_probability": 0.0,
            "total_variation": 0.0,
            "prompts.use_perp_neg": False,
            "prompts.negative_prompt": "",
            "density.first": 500,
            "density.last": 15_000,
            "density.reset_every": 3000,
        },
        "toybox": {
            "iterations": 430,
            "flip_probability": 0.0,
            # The same share of the run.
            "guidance.times.late_from": 86,
            # In fewer iterations: after 250 of them φ's loss is 0.14, with the published 1e-4 0.19.
            "guidance.learning_rate": 1e-3,
            "guidance.scale": 5.0,
        },
    }

    times: Times = choice(lambda: TIMES, UniformTimes(late_from=5_001))
    scale: float = 7.5
    rank: int = 4
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    camera_dropout: float = 0.1
    shared: bool = False

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        if self.rank < 1:
            raise UserError(
                f"The setting rank is {self.rank}, which leaves LoRA nothing to learn; give at least 1, as 4."
            )
        check_at_least(learning_rate=(self.learning_rate, 0), weight_decay=(self.weight_decay, 0))
        check_share("camera_dropout", self.camera_dropout)

    @property
    def shares_learned(self) -> bool:
        """As the setting says."""
        return self.shared

    @property
    def latest_time(self) -> int:
        """The last time that φ learns at."""
        return STEPS - 1

    def draw(self, keys: DrawKeys, progress: Progress, shape: tuple[int, int, int, int]) -> Draws:
        """Whether φ learns without the cameras; times and noise of each view, for z and for φ."""
        for_t, for_t_lora, for_camera = jax.random.split(keys.times, 3)
        for_noise, for_noise_lora = jax.random.split(keys.noise)
        return Draws(
            shared={"without_cameras": jax.random.bernoulli(for_camera, self.camera_dropout)},
            per_view={
                "t": self.times.draw(for_t, progress, shape[0]),
                "noise": normal(for_noise, shape),
                "t_lora": jax.random.randint(for_t_lora, shape[:1], 0, STEPS),
                "noise_lora": normal(for_noise_lora, shape),
            },
        )

    def begin(self, key: jax.Array, model: StableDiffusion) -> dict[str, Any]:
        """φ: `lora`, which changes nothing yet, and `camera`, an embedding at random; float32."""
        for_lora, for_camera = jax.random.split(key)
        return {
            "lora": init_lora(for_lora, model.unet_params, self.rank),
            "camera": init_camera_embedding(for_camera, model.unet.config.time_width),
        }

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW; like PyTorch's it decays all there is, biases too."""
        return optax.adamw(self.learning_rate, *_BETAS, eps=_EPSILON, weight_decay=self.weight_decay)

    def predict_learned(
        self,
        learned: Any,
        x: jax.Array,
        t: jax.Array,
        cameras: jax.Array,
        text: ViewTexts,
        denoiser: Denoiser,
    ) -> jax.Array:
        """ε_φ, (B, h, w, C), at x (B, h, w, C) and t (B,) for `camera_numbers` (B, 16)."""
        adapter = Adapter(learned["lora"], embed_camera(learned["camera"], cameras))
        (epsilon,) = denoiser.predict_for(x, t, text.plain, adapter=adapter)
        return epsilon

    def __call__(
        self,
        learned: Any,
        seen: SeenViews,
        text: ViewTexts,
        drawn: Draws,
        denoiser: Denoiser,
        progress: Progress,
    ) -> tuple[jax.Array, Numbers]:
        """The residual (1−ᾱ_t)·(ε̂(s) − ε_φ)/B for z, and for φ its loss's gradient.

        Numbers: of each view, loss, half the squared norm of B times the residual, and loss_lora, φ's.
        """
        # Neither gradient reaches into the other: φ is fixed for z, and z for φ.
        z, fixed = jax.lax.stop_gradient((seen.latents, learned))
        schedule, cameras, own = denoiser.schedule, camera_numbers(seen.cameras), drawn.per_view

        t = own["t"]
        x = add_noise(schedule, z, own["noise"], t)
        guided = denoiser.branches(x, t, text, text.negative).guided(self.scale)
        present = self.predict_learned(fixed, x, t, cameras, text, denoiser)
        weights = (1.0 - schedule.alphas_cumprod[t])[:, None, None, None]
        direction = weights * (guided - present)

        t = own["t_lora"]
        x = add_noise(schedule, z, own["noise_lora"], t)
        shown = jnp.where(drawn.shared["without_cameras"], 0.0, cameras)
        epsilon = self.predict_learned(learned, x, t, shown, text, denoiser)
        errors = output_errors(schedule, epsilon, own["noise_lora"], t)

        scalar, numbers = hand_over(
            seen,
            direction / seen.count,
            loss=half_square(direction),
            loss_lora=errors,
        )
        # This device's share of the mean over all views: the step sums over the devices.
        return scalar + jnp.sum(errors) / seen.count, numbers
