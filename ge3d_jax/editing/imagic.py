"""Imagic: a text that describes the picture, a network that draws it from that text, and a step beyond it.

First the target's embedding is moved until the network denoises the picture with it; then the network itself
is trained on the picture with the text found; then a picture is drawn from noise with a mixture of the
target's text and the one found. It needs no source prompt, and minutes.

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
    """What chance decides for each of P pictures.

    Attributes:
        times: (P, K) int32, of each round of training, of the text first.
        noise: (P, K, h, w, C), likewise.
        start: (P, h, w, C), what the picture is drawn from.
    """

    times: jax.Array
    noise: jax.Array
    start: jax.Array


@struct.dataclass
class Trained:
    """What the training of one picture found.

    Attributes:
        text: (L, D).
        parameters: of the network.
        losses: (K,), before each round.
    """

    text: jax.Array
    parameters: Any
    losses: jax.Array


@dataclasses.dataclass(frozen=True)
class Imagic(Method):
    """Imagic; of pictures together, one is trained after the other.

    Attributes:
        mixture: how much of the target's text there is in the last one; the rest is the text found, so that
            beyond 1 it leads away from that.
        text_rounds, text_rate: Adam's, of the text.
        network_rounds, network_rate: likewise, of the network.
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
        """Check what types cannot say. Raises UserError."""
        super().__post_init__()
        check_at_least(
            text_rounds=(self.text_rounds, 1),
            text_rate=(self.text_rate, 0),
            network_rounds=(self.network_rounds, 1),
            network_rate=(self.network_rate, 0),
        )

    def draw(self, key: jax.Array, task: EditTask, denoiser: Denoiser) -> ImagicDraws:
        """What chance decides."""
        for_times, for_noise, for_start = jax.random.split(key, 3)
        rounds = (task.pictures, self.text_rounds + self.network_rounds)
        shape = task.latents.shape[1:]
        return ImagicDraws(
            times=jax.random.randint(for_times, rounds, 0, denoiser.schedule.steps),
            noise=normal(for_noise, (*rounds, *shape)),
            start=normal(for_start, task.latents.shape),
        )

    def edit(self, task: EditTask, denoiser: Denoiser, drawn: ImagicDraws) -> Edited:
        """Edit with given draws. Numbers: the losses of all rounds, (P, K)."""
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
        """Train the text, then the network, on one picture; see `train`."""
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
        """Draw one picture with the mixed text, (N + 1, h, w, C)."""
        text = self.mixture * target + (1.0 - self.mixture) * trained.text
        model = dataclasses.replace(denoiser.model, unet_params=trained.parameters)
        asked = dataclasses.replace(denoiser, model=model)
        return guided_sample(asked, text, empty, times, start, scale=self.scale)

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit; times and noise of the training and the noise to begin with are drawn."""
        return self.edit(task, denoiser, self.draw(key, task, denoiser))


def _each_picture(picture: Any, given: Any) -> Any:
    """`picture` of each row of `given`, stacked: one after the other, since each trains a network."""
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
    """Move a text, then the whole network, towards mean (ε(x_t, t, text) − noise)² = 0 for one picture.

    Args:
        denoiser: the model, a `StableDiffusion`.
        latent: (h, w, C).
        target: (L, D), the text to begin with.
        times: (K,) int32, of each round.
        noise: (K, h, w, C), likewise.
        text_rounds: how many of the K rounds are the text's.
        text_rate, network_rate: Adam's.
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
    """One update of Adam for each time and noise."""
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
    """DDIM with guidance of one picture: (N + 1, h, w, C), from the noise (h, w, C) down."""

    def step(x: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        now, then = pair
        without, wanted = denoiser.predict_for(x[None], now, empty, text)
        epsilon = classifier_free_epsilon(without, wanted, scale)[0]
        moved = ddim_step(denoiser.schedule, x, epsilon, now, then).astype(x.dtype)
        return moved, moved

    _, states = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return jnp.concatenate([start[None], states])
