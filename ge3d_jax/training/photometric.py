"""The task of a fit: make the scene match posed images of it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ge3d_jax.core.random import Draws
from ge3d_jax.formats.posed_images import PosedImages
from ge3d_jax.guidance.base import Numbers, Progress
from ge3d_jax.metrics.pictures import psnr, ssim
from ge3d_jax.scenes.base import Renders, Scene
from ge3d_jax.splatting.cameras import Camera
from ge3d_jax.training.cameras import sample_backgrounds
from ge3d_jax.training.fit_config import FitConfig
from ge3d_jax.training.state import TrainState, initial_state

# Folded into the run's key for the order of the images; no iteration number reaches it.
_ORDER_STREAM = 2**31 - 2


@struct.dataclass
class Views:
    """Images and cameras on the device.

    pixels: (V, H, W, 4) uint8, premultiplied color and alpha.
    world_to_camera: (V, 4, 4), scene radii. intrinsics: (4,) pixels.
    """

    pixels: jax.Array
    world_to_camera: jax.Array
    intrinsics: jax.Array


def views_of(images: PosedImages, unit: float) -> Views:
    """Move images to the device, with camera positions in multiples of `unit` world units."""
    cameras = images.world_to_camera.copy()
    cameras[:, :3, 3] /= unit
    return Views(jnp.asarray(images.pixels), jnp.asarray(cameras), jnp.asarray(images.intrinsics))


def over_background(pixels: jax.Array, background: jax.Array) -> jax.Array:
    """Composite images (..., H, W, 4) uint8 over colors (..., 3): float32 (..., H, W, 3) in [0, 1]."""
    values = pixels.astype(jnp.float32) / 255.0
    return values[..., :3] + (1.0 - values[..., 3:]) * background[..., None, None, :]


def choose_views(key: jax.Array, iteration: jax.Array, *, views: int, count: int) -> jax.Array:
    """Return the indices (views,) of an iteration's images; each pass visits all `count` in a new order."""
    places = iteration * views + jnp.arange(views)

    def one(place: jax.Array) -> jax.Array:
        order = jax.random.permutation(jax.random.fold_in(key, place // count), count)
        return order[place % count]

    return jax.vmap(one)(places)


def image_loss(
    image: jax.Array, target: jax.Array, *, dssim: float, squared: bool = False, weight: float = 1.0
) -> jax.Array:
    """Compute the loss of `FitLossConfig` for images (H, W, 3), scalar."""
    difference = image - target
    loss = (1.0 - dssim) * jnp.mean(jnp.square(difference) if squared else jnp.abs(difference))
    if dssim:
        loss += dssim * (1.0 - ssim(image, target))
    return weight * loss


def begin_fit(config: FitConfig, key: jax.Array) -> TrainState:
    """Create the state before the first iteration; lengths are in scene radii."""
    start_key, run_key = jax.random.split(key)
    scene = config.scene.begin(start_key)
    return initial_state(scene, config.scene.parameters(scene), run_key)


@dataclasses.dataclass(frozen=True)
class Photometric:
    """The `Task` that minimizes the difference between images and renders.

    Attributes:
        config: all settings of the fit.
    """

    config: FitConfig

    @property
    def scene(self) -> Scene:
        """The scene being optimized."""
        return self.config.scene

    @property
    def iterations(self) -> int:
        """T, the total number of iterations."""
        return self.config.iterations

    @property
    def views(self) -> int:
        """Number of views per iteration, over all devices."""
        return self.config.views

    def image_size(self, context: Views) -> tuple[int, int]:
        """Return (width, height) of the images, pixels."""
        height, width = context.pixels.shape[1:3]
        return width, height

    @property
    def shares_learned(self) -> bool:
        """False: the loss has no learned parameters."""
        return False

    def learned_optimizer(self) -> optax.GradientTransformation:
        """Return the identity: the loss has no learned parameters."""
        return optax.identity()

    def _keys(self, state: TrainState) -> jax.Array:
        return jax.random.split(jax.random.fold_in(state.key, state.iteration))

    def run_key(self, state: TrainState) -> jax.Array:
        """Return the state's key."""
        return state.key

    def update_key(self, state: TrainState) -> jax.Array:
        """Return the PRNG key for the scene's `after_update`."""
        return self._keys(state)[1]

    def draw(self, state: TrainState, context: Views) -> Draws:
        """Draw an iteration's images, with their cameras and backgrounds."""
        config = self.config
        order_key = jax.random.fold_in(state.key, _ORDER_STREAM)
        chosen = choose_views(order_key, state.iteration, views=config.views, count=context.pixels.shape[0])
        return Draws(
            shared={},
            per_view={
                "world_to_camera": context.world_to_camera[chosen],
                "pixels": context.pixels[chosen],
                "backgrounds": sample_backgrounds(self._keys(state)[0], config.background, config.views),
            },
        )

    def look(
        self,
        scene: Any,
        learned: Any,
        perturbations: Any,
        context: Views,
        drawn: Draws,
        progress: Progress,
        axis: str | None,
    ) -> tuple[jax.Array, Numbers, Renders]:
        """Render and compare; see `Task`."""
        backgrounds, pixels = drawn.per_view["backgrounds"], drawn.per_view["pixels"]
        views = pixels.shape[0]
        width, height = self.image_size(context)
        intrinsics = jnp.broadcast_to(context.intrinsics, (views, 4))
        cameras = Camera(drawn.per_view["world_to_camera"], intrinsics, width=width, height=height)
        renders = self.config.scene.render(
            scene, progress.iteration, cameras, backgrounds, None, perturbations
        )
        targets = over_background(pixels, backgrounds)

        wanted = self.config.loss

        def compare(image: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss = image_loss(image, target, dssim=wanted.dssim, squared=wanted.squared, weight=wanted.weight)
            return loss, psnr(image, target)

        losses, psnrs = jax.vmap(compare)(renders.rgb, targets)
        # A sum, so that the gradients density control sees for a view do not depend on the number of views.
        scalar = jnp.sum(losses) + views * self.config.scene.penalty(scene)
        return scalar, {"loss": losses, "psnr": psnrs}, renders

    def grown(self, needed: int) -> "Photometric":
        """Return the same task with a larger buffer in its scene."""
        return Photometric(dataclasses.replace(self.config, scene=self.config.scene.grown(needed)))

    @property
    def steadier(self) -> str:
        """Advice for non-finite gradients."""
        return "Lower the learning rates."

    def remedies(self, devices: int) -> list[str]:
        """Return no settings: images go through no network."""
        return []
