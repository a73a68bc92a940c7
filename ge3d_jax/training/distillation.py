"""The text-to-3D task: render views of the scene, encode them, and let a distillation loss guide them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws, normal
from ge3d_jax.diffusion.denoiser import Denoiser, Predict, ViewTexts
from ge3d_jax.diffusion.pipeline import (
    StableDiffusion,
    decode_latents,
    encode_posterior,
    encode_text,
    latents_from_posterior,
    predict_epsilon,
    with_attention_chunk,
)
from ge3d_jax.guidance.base import DrawKeys, Numbers, Progress, SeenViews
from ge3d_jax.guidance.prompts import PromptEmbeddings, embed_prompt, view_texts
from ge3d_jax.scenes.base import Renders, Scene
from ge3d_jax.splatting.cameras import polar_angles
from ge3d_jax.training.cameras import sample_backgrounds, sample_cameras
from ge3d_jax.training.config import Config
from ge3d_jax.training.pictures import total_variation, with_pictures
from ge3d_jax.training.state import TrainState, initial_state

# Folded into the iteration's key, so that scenes without this noise keep their original random numbers.
_UPDATE_STREAM = 2**31 - 1
# Seed of the key that runs share. The runs' own keys are split from their seeds, so any value works.
_SHARED_SEED = 0


@struct.dataclass
class Prompted:
    """The context of an iteration, besides the scene.

    Attributes:
        model: the diffusion model.
        embeddings: of the prompt.
        source: the scene's state before an edit, for a loss that `needs_source_views`; else None.
    """

    model: StableDiffusion
    embeddings: PromptEmbeddings
    source: Any = None


class Sight(NamedTuple):
    """The B views of an iteration.

    Attributes:
        renders: of the scene.
        images: (B, H, W, 3), the rendered images, randomly flipped.
        latents: (B, h, w, C), latents of the images.
        text: the text embeddings of each view.
    """

    renders: Renders
    images: jax.Array
    latents: jax.Array
    text: ViewTexts


def prompt_embeddings(
    config: Config, model: StableDiffusion, prompt: str, source_prompt: str | None = None
) -> PromptEmbeddings:
    """Encode the prompt for each side, the negative prompt, and, for an edit, the source prompt."""
    return embed_prompt(
        partial(encode_text, model),
        prompt,
        negative_prompt=config.prompts.negative_prompt,
        source_prompt=source_prompt,
        use_overhead=config.prompts.use_overhead,
    )


def latent_shape(model: StableDiffusion, image_size: int) -> tuple[int, int, int]:
    """Return the shape (h, w, C) of a square image's latent."""
    vae = model.vae.config
    edge = image_size // vae.downscale
    return edge, edge, vae.latent_channels


def with_room_for(renders: Renders, others: Renders) -> Renders:
    """Return the renders, with the larger buffer requirement of the two renderings of the same views."""
    return dataclasses.replace(
        renders,
        needed=jnp.maximum(renders.needed, others.needed),
        overflow=jnp.maximum(renders.overflow, others.overflow),
    )


def _first_key(config: Config, key: jax.Array) -> jax.Array:
    """Return the key with which a run begins: that of `first_seed` if set, else the run's own `key`."""
    if config.first_seed is None:
        return key
    return jax.random.key(config.first_seed, impl=jax.random.key_impl(key))


def begin(config: Config, model: StableDiffusion, key: jax.Array, *, start: Any = None) -> TrainState:
    """Create the state before the first iteration.

    Args:
        config: all settings.
        model: the diffusion model, for initializing the loss's own learned parameters.
        key: the run's PRNG key.
        start: the initial scene, None for the one that the settings specify.

    Raises:
        UserError: the scene cannot begin with `start`.
    """
    _, run_key = jax.random.split(key)
    start_key, first_key = jax.random.split(_first_key(config, key))
    scene = config.scene.begin(start_key, start)
    return initial_state(
        scene,
        config.scene.parameters(scene),
        run_key,
        learned=config.guidance.begin(first_key, model),
        learned_optimizer=config.guidance.optimizer(),
    )


def draw_by_view(scene: Scene, key: jax.Array, state: Any, views: int) -> Draws:
    """Make the scene's random draws one view at a time.

    A splat's random numbers then do not depend on the buffer's capacity. This matters because runs that step
    together all have the capacity that the fullest one needs.

    Args:
        scene: the scene that draws.
        key: PRNG key.
        state: the scene's state.
        views: number of views.
    """
    drawn = jax.vmap(lambda key: scene.draw(key, state, 1))(jax.random.split(key, views))
    return Draws(
        shared=jax.tree.map(lambda leaf: leaf[0], drawn.shared),
        per_view=jax.tree.map(lambda leaf: leaf[:, 0], drawn.per_view),
    )


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The `Task` that applies the configured loss to the latents of rendered views.

    Attributes:
        config: all settings of the run.
        predict: evaluates the network; see `Denoiser`.
    """

    config: Config
    predict: Predict = predict_epsilon

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

    def image_size(self, context: Prompted) -> tuple[int, int]:
        """Return (width, height) of the views, pixels."""
        return self.config.image_size, self.config.image_size

    def learned_optimizer(self) -> optax.GradientTransformation:
        """Return the loss's own optimizer."""
        return self.config.guidance.optimizer()

    @property
    def shares_learned(self) -> bool:
        """Whether the loss shares its learned parameters."""
        return self.config.guidance.shares_learned

    def run_key(self, state: TrainState) -> jax.Array:
        """Return the PRNG key in effect at `state`; initially that of `first_seed`, if set."""
        config = self.config
        if config.first_seed is None:
            return state.key
        _, first_key = jax.random.split(_first_key(config, state.key))
        shared = round(config.first_seed_share * config.iterations)
        return jnp.where(state.iteration < shared, first_key, state.key)

    def update_key(self, state: TrainState) -> jax.Array:
        """Return the PRNG key for the scene's `after_update`."""
        return jax.random.fold_in(jax.random.fold_in(self.run_key(state), state.iteration), _UPDATE_STREAM)

    def draw(self, state: TrainState, context: Prompted) -> Draws:
        """Draw cameras, backgrounds, a flip, and the values for the scene, the encoder, and the loss."""
        config, views = self.config, self.config.views
        run_key = self.run_key(state)
        keys = jax.random.split(jax.random.fold_in(run_key, state.iteration), 7)
        times_key = self._shared_key(state) if config.shared_nodes else keys[1]
        shape = (views, *latent_shape(context.model, config.image_size))
        cameras, azimuth = sample_cameras(
            keys[0],
            config.cameras,
            state.iteration,
            views=views,
            size=config.image_size,
            together=config.guidance.views_together,
        )
        draw_scene = partial(draw_by_view, config.scene) if config.shared_nodes else config.scene.draw
        scene = draw_scene(keys[2], state.scene, views)
        loss = config.guidance.draw(
            DrawKeys(times=times_key, noise=keys[4], run=run_key),
            Progress(state.iteration, config.iterations),
            shape,
        )
        return Draws(
            shared={
                "flip": jax.random.bernoulli(keys[5], config.flip_probability),
                "scene": scene.shared,
                "loss": loss.shared,
            },
            per_view={
                "cameras": cameras,
                "azimuth": azimuth,
                "backgrounds": sample_backgrounds(keys[3], config.background, views),
                "posterior_noise": normal(keys[6], shape),
                "scene": scene.per_view,
                "loss": loss.per_view,
            },
        )

    @staticmethod
    def _shared_key(state: TrainState) -> jax.Array:
        """Return the PRNG key that all runs share in the iteration that follows `state`."""
        impl = jax.random.key_impl(state.key)
        return jax.random.fold_in(jax.random.key(_SHARED_SEED, impl=impl), state.iteration)

    def _views_at_a_time(self, share: int) -> int:
        """Return how many of a device's `share` views go through the networks at a time."""
        return self.config.views_per_pass * share // self.config.views

    def encoder(self, model: StableDiffusion) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
        """Return the VAE's `encode_posterior` for views (B, H, W, 3), in batches as configured."""
        encode = partial(encode_posterior, model)

        def encode_views(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            views = images.shape[0]
            at_a_time = 1 if self.config.vae_rematerialize else self._views_at_a_time(views)
            if at_a_time == views:
                return encode(images)
            groups = images.reshape(-1, at_a_time, *images.shape[1:])
            # Without rematerialization, a loop over the views would keep the intermediate values of all.
            means, variances = jax.lax.map(jax.checkpoint(encode, prevent_cse=False), groups)
            return means.reshape(views, *means.shape[2:]), variances.reshape(views, *variances.shape[2:])

        return encode_views

    def denoiser(self, model: StableDiffusion, views: int) -> Denoiser:
        """Return the denoiser that the loss queries, for a device's share of the views."""
        return Denoiser(model, model.schedule, self._views_at_a_time(views), self.predict)

    def see(
        self, scene: Any, perturbations: Any, context: Prompted, drawn: Draws, progress: Progress
    ) -> Sight:
        """Render and encode the views; the arguments are those of `look`."""
        config, shared, per_view = self.config, drawn.shared, drawn.per_view
        model = with_attention_chunk(context.model, config.attention_chunk)
        renders = config.scene.render(
            scene,
            progress.iteration,
            per_view["cameras"],
            per_view["backgrounds"],
            Draws(shared["scene"], per_view["scene"]),
            perturbations,
        )
        images = jnp.where(shared["flip"], renders.rgb[:, :, ::-1], renders.rgb)
        posterior = self.encoder(model)(images)
        latents = latents_from_posterior(model, *posterior, per_view["posterior_noise"])
        text = view_texts(
            context.embeddings,
            per_view["azimuth"],
            use_perp_neg=config.prompts.use_perp_neg,
            weight=config.prompts.perp_neg_weight,
            rule=config.prompts.perp_neg_rule,
            polar=polar_angles(per_view["cameras"]),
        )
        return Sight(renders, images, latents, text)

    def see_source(self, context: Prompted, drawn: Draws, progress: Progress) -> Sight:
        """Apply `see` to the unedited object, with the same random draws and without a gradient.

        Raises:
            UserError: the context has no source.
        """
        if context.source is None:
            raise UserError(
                "This loss compares with views of the object being edited, but this run edits none; choose "
                "another guidance.inversion."
            )
        views = drawn.per_view["azimuth"].shape[0]
        of_scene = self.scene.fitted_draws(
            Draws(drawn.shared["scene"], drawn.per_view["scene"]), context.source
        )
        own = Draws(
            {**drawn.shared, "scene": of_scene.shared}, {**drawn.per_view, "scene": of_scene.per_view}
        )
        perturbations = self.scene.perturbations(context.source, views)
        return jax.lax.stop_gradient(self.see(context.source, perturbations, context, own, progress))

    def look(
        self,
        scene: Any,
        learned: Any,
        perturbations: Any,
        context: Prompted,
        drawn: Draws,
        progress: Progress,
        axis: str | None,
    ) -> tuple[jax.Array, Numbers, Renders]:
        """Render, encode, and evaluate the loss; see `Task`."""
        config, shared, per_view = self.config, drawn.shared, drawn.per_view
        model = with_attention_chunk(context.model, config.attention_chunk)
        views = per_view["azimuth"].shape[0]
        renders, images, latents, text = self.see(scene, perturbations, context, drawn, progress)
        denoiser = self.denoiser(model, views)
        before = self.see_source(context, drawn, progress) if config.guidance.needs_source_views else None
        source = None if before is None else before.latents
        if before is not None:
            renders = with_room_for(renders, before.renders)

        def ask(latents: jax.Array) -> tuple[jax.Array, Numbers]:
            seen = SeenViews(latents, per_view["cameras"], config.views, axis, source)
            drawn_by_loss = Draws(shared["loss"], per_view["loss"])
            return config.guidance(learned, seen, text, drawn_by_loss, denoiser, progress)

        steps = config.guidance.steps_to_target
        if config.picture_weight and steps is not None:
            decode = partial(decode_latents, model)
            scalar, numbers = with_pictures(
                ask,
                decode,
                images,
                latents,
                weight=config.picture_weight,
                steps=steps,
                source=None if before is None else (before.images, decode(before.latents)),
            )
        else:
            scalar, numbers = ask(latents)
        # These terms do not grow with the number of views, so each device adds its share.
        share = views / config.views
        if config.total_variation:
            scalar += share * config.total_variation * total_variation(images)
        scalar += share * config.scene.penalty(scene)
        return scalar, numbers, renders

    def grown(self, needed: int) -> "Distillation":
        """Return the same task with a larger buffer in its scene."""
        config = dataclasses.replace(self.config, scene=self.config.scene.grown(needed))
        return dataclasses.replace(self, config=config)

    @property
    def steadier(self) -> str:
        """Advice for non-finite gradients."""
        return "Lower the learning rates or guidance.scale, or use float32."

    def remedies(self, devices: int) -> list[str]:
        """Return settings that lower an iteration's memory use; BUILD.md has the figures."""
        if self.config.views_per_pass <= devices:
            # Each device already processes one view at a time.
            return []
        remedies = [] if self.config.vae_rematerialize else ["vae_rematerialize=true"]
        return [*remedies, f"views_per_batch={devices}"]
