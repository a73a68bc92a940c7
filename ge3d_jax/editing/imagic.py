"""Imagic: find a text that describes the image, fine-tune the network with it, and sample beyond that text.

First, the target's embedding is optimized until the network denoises the image with it. Then the network
itself is trained on the image with the text found. Finally, an image is sampled from noise with a mixture of
the target text and the text found. It needs no source prompt, but it takes minutes.

Source: Kawar et al., "Imagic: Text-Based Real Image Editing with Diffusion Models", arXiv 2210.09276, and
diffusers' community pipeline.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ge3d_jax.core.random import normal
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser, classifier_free_epsilon
from ge3d_jax.diffusion.schedule import add_noise, ddim_step
from ge3d_jax.editing.base import Edited, EditTask, Method


@struct.dataclass
class ImagicDraws:
    """All random draws, for each of P images.

    Attributes:
        times: (P, K) int32, one per training round, those of the text first.
        noise: (P, K, h, w, C), one per training round.
        start: (P, h, w, C), the noise that sampling starts from.
    """

    times: jax.Array
    noise: jax.Array
    start: jax.Array


@struct.dataclass
class Trained:
    """The result of training on one image.

    Attributes:
        text: (L, D), the text found.
        parameters: the network's parameters.
        losses: (K,), before each round.
    """

    text: jax.Array
    parameters: Any
    losses: jax.Array


@dataclasses.dataclass(frozen=True)
class Imagic(Method):
    """Imagic; a batch of images is trained one image at a time.

    Attributes:
        mixture: the target text's share of the final text; the rest is the text found, so a value above 1
            extrapolates away from it.
        text_rounds, text_rate: Adam's, for the text.
        network_rounds, network_rate: Adam's, for the network.
    """

    needs_source: ClassVar[bool] = False
    controls_attention: ClassVar[bool] = False
    blends: ClassVar[bool] = False

    first_time: int = 1
    mixture: float = 1.2
    text_rounds: int = 500
    text_rate: float = 1e-3
    network_rounds: int = 1000
    network_rate: float = 2e-6

    def __post_init__(self) -> None:
        """Validate the settings. Raises UserError."""
        super().__post_init__()
        check_at_least(
            text_rounds=(self.text_rounds, 1),
            text_rate=(self.text_rate, 0),
            network_rounds=(self.network_rounds, 1),
            network_rate=(self.network_rate, 0),
        )

    def draw(self, key: jax.Array, task: EditTask, denoiser: Denoiser) -> ImagicDraws:
        """Make all random draws."""
        for_times, for_noise, for_start = jax.random.split(key, 3)
        rounds = (task.pictures, self.text_rounds + self.network_rounds)
        shape = task.latents.shape[1:]
        return ImagicDraws(
            times=jax.random.randint(for_times, rounds, 0, denoiser.schedule.steps),
            noise=normal(for_noise, (*rounds, *shape)),
            start=normal(for_start, task.latents.shape),
        )

    def edit(self, task: EditTask, denoiser: Denoiser, drawn: ImagicDraws) -> Edited:
        """Edit with given random draws. Numbers: the losses of all rounds, (P, K)."""
        one = dataclasses.replace(denoiser, views_at_a_time=1)
        times = self.times(denoiser)

        def picture(given: tuple[jax.Array, jax.Array, ImagicDraws]) -> tuple[jax.Array, jax.Array]:
            latent, target, draws = given
            trained = self.train(one, latent, target, draws.times, draws.noise)
            states = self.sample(one, trained, target, task.empty, times, draws.start)
            return states, trained.losses

        states, losses = _each_picture(picture, (task.latents, task.target, drawn))
        return Edited(task.latents[None], jnp.moveaxis(states, 0, 1), numbers={"losses": losses})

    def train(
        self, denoiser: Denoiser, latent: jax.Array, target: jax.Array, times: jax.Array, noise: jax.Array
    ) -> Trained:
        """Train the text, then the network, on one image; see the function `train`."""
        return train(
            denoiser,
            latent,
            target,
            times,
            noise,
            text_rounds=self.text_rounds,
            text_rate=self.text_rate,
            network_rate=self.network_rate,
        )

    def sample(
        self,
        denoiser: Denoiser,
        trained: Trained,
        target: jax.Array,
        empty: jax.Array,
        times: jax.Array,
        start: jax.Array,
    ) -> jax.Array:
        """Sample one image with the mixed text, (N + 1, h, w, C)."""
        text = self.mixture * target + (1.0 - self.mixture) * trained.text
        model = dataclasses.replace(denoiser.model, unet_params=trained.parameters)
        asked = dataclasses.replace(denoiser, model=model)
        return guided_sample(asked, text, empty, times, start, scale=self.scale)

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit the images; the training times, the training noise, and the starting noise are drawn."""
        return self.edit(task, denoiser, self.draw(key, task, denoiser))


def _each_picture(picture: Any, given: Any) -> Any:
    """Apply `picture` to each row of `given`, one at a time since each trains a network, and stack."""
    leaves, structure = jax.tree.flatten(given)
    rows = zip(*leaves, strict=True)
    results = [picture(jax.tree.unflatten(structure, row)) for row in rows]
    return jax.tree.map(lambda *each: jnp.stack(each), *results)


@partial(jax.jit, static_argnames="text_rounds")
def train(
    denoiser: Denoiser,
    latent: jax.Array,
    target: jax.Array,
    times: jax.Array,
    noise: jax.Array,
    *,
    text_rounds: int,
    text_rate: float,
    network_rate: float,
) -> Trained:
    """Train a text, then the whole network, to minimize mean (ε(x_t, t, text) − noise)² on one image.

    Args:
        denoiser: the model, a `StableDiffusion`.
        latent: (h, w, C).
        target: (L, D), the initial text.
        times: (K,) int32, one per round.
        noise: (K, h, w, C), one per round.
        text_rounds: how many of the K rounds train the text.
        text_rate, network_rate: Adam's learning rates.
    """

    def loss(learned: tuple[jax.Array, Any], t: jax.Array, n: jax.Array) -> jax.Array:
        text, parameters = learned
        model = dataclasses.replace(denoiser.model, unet_params=parameters)
        asked = dataclasses.replace(denoiser, model=model)
        x = add_noise(denoiser.schedule, latent, n, t)
        (epsilon,) = asked.predict_for(x[None], t, text)
        return jnp.mean((epsilon[0] - n) ** 2)

    parameters = denoiser.model.unet_params
    text, text_losses = _adam(
        lambda text, t, n: loss((text, parameters), t, n),
        target,
        text_rate,
        times[:text_rounds],
        noise[:text_rounds],
    )
    parameters, network_losses = _adam(
        lambda parameters, t, n: loss((text, parameters), t, n),
        parameters,
        network_rate,
        times[text_rounds:],
        noise[text_rounds:],
    )
    return Trained(text, parameters, jnp.concatenate([text_losses, network_losses]))


def _adam(loss: Any, start: Any, rate: float, times: jax.Array, noise: jax.Array) -> tuple[Any, jax.Array]:
    """Run one Adam update for each time and noise."""
    adam = optax.scale_by_adam()

    def step(
        carried: tuple[Any, Any], given: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[Any, Any], jax.Array]:
        value, moments = carried
        now, slope = jax.value_and_grad(loss)(value, *given)
        moved, moments = adam.update(slope, moments)
        value = jax.tree.map(lambda old, change: (old - rate * change).astype(old.dtype), value, moved)
        return (value, moments), now

    (value, _), losses = jax.lax.scan(step, (start, adam.init(start)), (times, noise))
    return value, losses


@jax.jit
def guided_sample(
    denoiser: Denoiser,
    text: jax.Array,
    empty: jax.Array,
    times: jax.Array,
    start: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """Sample one image by DDIM with guidance: (N + 1, h, w, C), starting from the noise (h, w, C)."""

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        now, then = pair
        without, wanted = denoiser.predict_for(x[None], now, empty, text)
        epsilon = classifier_free_epsilon(without, wanted, scale)[0]
        moved = ddim_step(denoiser.schedule, x, epsilon, now, then).astype(x.dtype)
        return moved, moved

    _, states = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return jnp.concatenate([start[None], states])
