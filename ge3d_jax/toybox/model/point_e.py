"""Training of the small Point-E: its sizes, its data, and a jitted step for each network.

Both networks see clouds x_t = √ᾱ_t·x0 + √(1 − ᾱ_t)·ε at uniformly drawn times, as in Point-E (arXiv
2212.08751), but predict the velocity v = √ᾱ_t·ε − √(1 − ᾱ_t)·x0 instead of the noise ε. An error in ε has the
least weight at the highest noise, where the sentence determines the shape: in 1250 steps of ε prediction, a
small network did not learn to follow the sentence at all.

The text encoder is trained together with the base network. The bundled model's text encoder is made for
attention to all words; its end token, which Point-E reads, is nearly the same for all sentences (cosines
above 0.96).

A cloud is a random subset of an object's points in two colors, drawn anew in each step, so that no cloud
repeats. Its sentence is sometimes dropped, for guidance.

Clouds have Point-E's axes and size: they face -y and are half as large as in the world, within the sampler's
range of [-1, 1].
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.diffusion.networks.text_encoder import CLIPTextFeatures
from ge3d_jax.diffusion.weights.clip import TextTower
from ge3d_jax.scenes.start.point_e.model import unit_features
from ge3d_jax.scenes.start.point_e.networks import (
    CHANNEL_BIASES,
    CHANNEL_SCALES,
    BaseConfig,
    TransformerConfig,
    UpsamplerConfig,
    network,
)
from ge3d_jax.scenes.start.point_e.sampler import UPSAMPLING, VELOCITY, Stage, alphas_cumprod
from ge3d_jax.scenes.start.point_e.start import BUNDLED_SIZE
from ge3d_jax.toybox.model.training import TEXT_WIDTH, TrainingState, apply_gradients
from ge3d_jax.toybox.world.captions import Sentence, caption
from ge3d_jax.toybox.world.objects import COLORS, KINDS
from ge3d_jax.toybox.world.surfaces import Surface, paint_surface, palette, sample_surface

BASE = BaseConfig(width=96, layers=4, heads=4, points=256, text_features=TEXT_WIDTH)
UPSAMPLER = UpsamplerConfig(
    width=64, layers=3, heads=2, points=768, given_points=256, grid_tokens=1, grid_channels=8
)
# The published sampling stages, with fewer steps and less guidance: at 3, the clouds' shapes are exaggerated.
BASE_STAGE = Stage(steps=32, guidance=1.5, prediction=VELOCITY)
UPSAMPLER_STAGE = dataclasses.replace(UPSAMPLING, steps=16, prediction=VELOCITY)
_DROPPED_SHARE = 0.1
_NAMED_SHARE = 0.5  # sentences that name the color of the part
# The base network's points, which are the upsampler's input, lie near the surface rather than on it.
_GIVEN_NOISE = 0.01


@struct.dataclass
class Tokens:
    """Tokenized sentences.

    Attributes:
        ids: (..., L) int32, token ids.
        ends: (...) int32, index of the end token.
    """

    ids: jax.Array
    ends: jax.Array


@struct.dataclass
class CloudData:
    """The data that clouds are drawn from: K kinds, P points of each, C colors.

    Attributes:
        surfaces: surfaces of all kinds, in Point-E's axes and size.
        palette: (C, 3) RGB.
        part_colors: (K,) default color index of the part, if the sentence does not name one.
        sentences: (K, C, C + 1, L) and (K, C, C + 1); the last of the C + 1 names no second color.
    """

    surfaces: Surface
    palette: jax.Array
    part_colors: jax.Array
    sentences: Tokens


def to_point_e_axes(positions: np.ndarray) -> np.ndarray:
    """Convert world positions (..., 3) to Point-E's axes and size; see `scenes.start.point_e.start`."""
    x, y, z = np.moveaxis(positions, -1, 0)
    return np.stack([y, -x, z], axis=-1) / BUNDLED_SIZE


def make_surfaces(key: jax.Array, points: int) -> Surface:
    """Sample surface points of all kinds, in Point-E's axes and size."""
    each = [sample_surface(jax.random.fold_in(key, index), kind, points) for index, kind in enumerate(KINDS)]
    stacked: Surface = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    return stacked.replace(positions=to_point_e_axes(np.asarray(stacked.positions)))  # type: ignore[attr-defined]


def make_data(surfaces: Surface, tower: TextTower) -> CloudData:
    """Combine the surfaces with all tokenized sentences."""
    names = list(COLORS)
    sentences = [
        caption(Sentence(kind, color, second))
        for kind in KINDS
        for color in names
        for second in (*names, None)
    ]
    ids, ends = tower.tokens(sentences)
    shape = (len(KINDS), len(names), len(names) + 1)
    return CloudData(
        surfaces=surfaces,
        palette=jnp.asarray(palette()),
        part_colors=jnp.asarray([names.index(kind.part_color) for kind in KINDS.values()]),
        sentences=Tokens(jnp.asarray(ids.reshape(*shape, -1)), jnp.asarray(ends.reshape(shape))),
    )


def draw_clouds(key: jax.Array, data: CloudData, clouds: int, points: int) -> tuple[jax.Array, Tokens]:
    """Draw random clouds.

    Args:
        key: PRNG key.
        data: the data to draw from.
        clouds: B, number of clouds.
        points: N, points per cloud.

    Returns:
        (B, N, 6) in meters and colors of 0 … 255, and their sentences, (B, L) and (B,).
    """
    kinds_key, first_key, second_key, named_key, points_key = jax.random.split(key, 5)
    colors = len(data.palette)
    kinds = jax.random.randint(kinds_key, (clouds,), 0, len(data.part_colors))
    first = jax.random.randint(first_key, (clouds,), 0, colors)
    named = jax.random.uniform(named_key, (clouds,)) < _NAMED_SHARE
    second = jnp.where(named, jax.random.randint(second_key, (clouds,), 0, colors), data.part_colors[kinds])
    chosen = jax.random.randint(points_key, (clouds, points), 0, data.surfaces.positions.shape[1])
    picked: Surface = jax.tree.map(lambda leaf: leaf[kinds[:, None], chosen], data.surfaces)
    painted = paint_surface(picked, data.palette[first], data.palette[second])
    places = kinds, first, jnp.where(named, second, colors)
    sentences: Tokens = jax.tree.map(lambda leaf: leaf[places], data.sentences)
    return jnp.concatenate([picked.positions, 255.0 * painted], axis=-1), sentences


def _velocity_loss(
    predict: Callable[[jax.Array, jax.Array], jax.Array], signal: jax.Array, key: jax.Array, clean: jax.Array
) -> jax.Array:
    """Mean squared error of the predicted velocity for clouds (B, N, 6) in the diffusion's scale."""
    time_key, noise_key = jax.random.split(key)
    batch, steps = len(clean), len(signal)
    # Stratified times, one from each of B equal intervals: the same mean, with less noise between steps.
    times = (jax.random.uniform(time_key, (batch,)) + jnp.arange(batch)) / batch * steps
    times = jnp.clip(times.astype(jnp.int32), 0, steps - 1)
    noise = jax.random.normal(noise_key, clean.shape)
    kept = signal[times][:, None, None]
    seen = jnp.sqrt(kept) * clean + jnp.sqrt(1.0 - kept) * noise
    velocity = jnp.sqrt(kept) * noise - jnp.sqrt(1.0 - kept) * clean
    return jnp.mean((predict(seen, times)[..., : clean.shape[-1]] - velocity) ** 2)


def _to_diffusion(points: jax.Array) -> jax.Array:
    return points * jnp.asarray(CHANNEL_SCALES) + jnp.asarray(CHANNEL_BIASES)


def cloud_loss(
    parameters: Any,
    config: TransformerConfig,
    text: CLIPTextFeatures,
    key: jax.Array,
    data: CloudData,
    clouds: int,
    points: int,
) -> jax.Array:
    """The loss of either network on random clouds.

    Args:
        parameters: "network", and for the base network also "text".
        config: size of the network; its type selects the network.
        text: the text encoder, used only with the base network.
        key: PRNG key.
        data: the data that clouds are drawn from.
        clouds: number of clouds.
        points: points to denoise per cloud. Fewer points than the network's own number take less time, and
            the network learns as much from each, because every point sees the sentence or the given points.

    Returns:
        () loss.
    """
    cloud_key, drop_key, noise_key = jax.random.split(key, 3)
    apply = partial(network(config).apply, {"params": parameters["network"]})
    given = config.given_points if isinstance(config, UpsamplerConfig) else 0
    drawn, sentences = draw_clouds(cloud_key, data, clouds, given + points)
    clean = _to_diffusion(drawn[:, given:])
    if isinstance(config, UpsamplerConfig):
        blur = jnp.asarray([_GIVEN_NOISE] * 3 + [0.0] * 3) * jax.random.normal(drop_key, (clouds, given, 6))
        known = drawn[:, :given] + blur
        signal = alphas_cumprod(UPSAMPLER_STAGE.schedule)

        def predict(seen: jax.Array, times: jax.Array) -> Any:
            return apply(seen, times, known)

    else:
        read: Any = text.apply({"params": parameters["text"]}, sentences.ids, sentences.ends)
        kept = jax.random.uniform(drop_key, (clouds, 1)) >= _DROPPED_SHARE
        features = unit_features(read) * kept
        signal = alphas_cumprod(BASE_STAGE.schedule)

        def predict(seen: jax.Array, times: jax.Array) -> Any:
            return apply(seen, times, features)

    return _velocity_loss(predict, jnp.asarray(signal, jnp.float32), noise_key, clean)


@partial(jax.jit, static_argnames=("config", "text", "clouds", "points", "optimizer"))
def cloud_step(
    state: TrainingState,
    key: jax.Array,
    data: CloudData,
    *,
    config: TransformerConfig,
    text: CLIPTextFeatures,
    clouds: int,
    points: int,
    optimizer: Any,
) -> tuple[TrainingState, jax.Array]:
    """Take one optimizer step of either network; see `cloud_loss`.

    Returns:
        The new state and the () loss.
    """
    loss, gradients = jax.value_and_grad(cloud_loss)(state.params, config, text, key, data, clouds, points)
    return apply_gradients(state, gradients, optimizer), loss
