"""An iteration compiled for a card that is not at hand, from shapes alone."""

import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.models import SIZES, Size, shaped_model
from jax.experimental import topologies
from jax.sharding import Mesh

from ge3d_jax.core.devices import BATCH_AXIS, compiling_for, replicated
from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import with_overrides
from ge3d_jax.diffusion.networks.kernel_order import in_read_order
from ge3d_jax.diffusion.pipeline import StableDiffusion
from ge3d_jax.guidance.prompts import PromptEmbeddings
from ge3d_jax.runs.asked import bundled_model
from ge3d_jax.training.compilation import Compilation, compilation_of
from ge3d_jax.training.config import Config
from ge3d_jax.training.distillation import Distillation, Prompted, begin
from ge3d_jax.training.step import lower_step
from gpu_plan.cards import Card
from gpu_plan.costs import OUR_KERNELS
from gpu_plan.kernels import Kernel, assembled, our_kernels
from gpu_plan.program import read_program

_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# Frames of the source that each instruction keeps: the innermost ones tell which part it belongs to.
_FRAMES = 40
_ANY_SCALE = 0.01


def prepare(find: Callable[[str], Any] = importlib.util.find_spec) -> None:
    """Have JAX compile for cards without one; call before it is first used.

    Args:
        find: finds a package by name, None where it is not installed.

    Raises:
        UserError: the packages that do so are not installed.
    """
    if not any(find(name) for name in _PLUGINS):
        raise UserError(
            "Compiling for a card needs JAX's CUDA packages, which this Python does not have; run make "
            "plan-gpu GPU=h100, which makes an environment with them (3 GB)."
        )
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", _FRAMES)
    # A program from the cache would come without its text.
    jax.config.update("jax_enable_compilation_cache", False)


def mesh_of(card: Card) -> Mesh:
    """A mesh of one such card.

    Raises:
        UserError: the compiler does not take the card's specification.
    """
    try:
        topology = topologies.get_topology_desc(
            card.name, "cuda", target_config=card.specification, topology="1x1x1"
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"The compiler does not take the specification of {card.name} ({reason}); compare it with the "
            "files in experiments/gpu_plan/cards."
        ) from None
    return Mesh(np.asarray(topology.devices[:1]), (BATCH_AXIS,))


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of an iteration.

    Attributes:
        text: the program.
        compilation: memory and time.
        outside: bytes of the model that the iteration does not use: the text encoder, and the VAE's decoder
            unless a loss of pictures needs it.
        remedies: settings that lower the memory, the strongest first.
        kernels: of our own.
    """

    text: str
    compilation: Compilation
    outside: int
    remedies: list[str]
    kernels: list[Kernel]


def size_of(config: Config, preset: str) -> Size:
    """The size of the preset's model: Stable Diffusion's, or the bundled one's."""
    size = SIZES.get(bundled_model(preset) or preset, SIZES["sd21"])
    if config.image_size % size.vae.downscale:
        raise UserError(
            f"The setting image_size is {config.image_size}, which is no multiple of {size.vae.downscale}; "
            "choose another."
        )
    return size


def text_shapes(size: Size, dtype: Any) -> PromptEmbeddings:
    """The embeddings that every run has; an edit's source is none of them."""
    row: Any = jax.ShapeDtypeStruct((size.tokens, size.unet.cross_attention_dim), dtype)
    needed = (f.name for f in dataclasses.fields(PromptEmbeddings) if f.default is dataclasses.MISSING)
    return PromptEmbeddings(**dict.fromkeys(needed, row))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def as_loaded(model: StableDiffusion, dtype: jnp.dtype) -> StableDiffusion:
    """The shapes of the model as `ModelChoice.load` stores it on the card."""

    def stored(parameters: Any) -> Any:
        return jax.eval_shape(partial(jax.tree.map, lambda leaf: in_read_order(leaf, dtype)), parameters)

    return dataclasses.replace(
        model, unet_params=stored(model.unet_params), vae_params=stored(model.vae_params)
    )


def compile_iteration(config: Config, size: Size, dtype: jnp.dtype, card: Card) -> Compiled:
    """Compile the iteration of a run for a card, from shapes.

    Args:
        config: settings of the run.
        size: of the model.
        dtype: what the networks are stored and computed in.
        card: what to compile for.

    Raises:
        UserError: the compiler does not take the card's specification.
    """
    mesh, model = mesh_of(card), shaped_model(size, dtype)
    with compiling_for(card.target):
        model = as_loaded(model, dtype)
    # Splats that are sized by their neighbors need numbers; shapes do not depend on the size.
    sized = with_overrides(config, {"scene.start.scale": _ANY_SCALE})
    state = jax.eval_shape(partial(begin, sized), model, jax.random.key(0))
    context = Prompted(model, text_shapes(size, jnp.float32))
    everywhere = replicated(mesh)
    state, context = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), (state, context)
    )
    task = Distillation(config)
    with compiling_for(card.target):
        lowered = lower_step(state, context, task=task, mesh=mesh)
    return _compiled(lowered, model, task)


def _compiled(lowered: jax.stages.Lowered, model: StableDiffusion, task: Distillation) -> Compiled:
    is_ours = any(name in lowered.as_text() for name in OUR_KERNELS)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # For the registers of kernels of our own; XLA's many files are not needed otherwise.
        program = lowered.compile(compiler_options={"xla_dump_to": folder} if is_ours else None)
        seconds, text = time.monotonic() - begun, program.as_text() or ""
        kernels = assembled(Path(folder), our_kernels(read_program(text))) if is_ours else []
    decoder = {name: model.vae_params[name] for name in ("decoder", "post_quant_conv")}
    return Compiled(
        text=text,
        compilation=compilation_of(program, seconds, 1),
        outside=_bytes(model.text_params) + (0 if task.config.picture_weight else _bytes(decoder)),
        remedies=task.remedies(1),
        kernels=kernels,
    )
