"""What an edit is: a picture's latents, two prompts, and a method that leads one to the other.

A method is a frozen dataclass of its own settings, derived from `Method`. It knows nothing of words, files or
devices: it asks the denoiser, with the control of attention that the task brings. To add one, write one file
and one line of the dictionary in `editing/methods.py`.

Symbols: P pictures; h, w, C of a latent; L tokens and D channels of a text; N steps, at the times t_0 > t_1 >
… > t_{N−1} and 0; z*, a picture's latent on its way up.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import check_at_least
from ge3d_jax.diffusion.denoiser import Denoiser
from ge3d_jax.editing.control import LocalBlend, PromptControl

# Published scheduler of all that edit with Stable Diffusion 1.4, but for edit-friendly DDPM and Imagic.
PUBLISHED_STEPS = 50
PUBLISHED_SCALE = 7.5


@struct.dataclass
class EditTask:
    """What is to be edited.

    Attributes:
        latents: (P, h, w, C), of the pictures: the posterior's mean.
        source: (P, L, D), what the pictures show.
        target: (P, L, D), what they are to show.
        empty: (L, D), the empty prompt.
        control: what the target prompts keep of the sources, for N steps; a method that makes fewer takes the
            first.
        blend: where the pictures may change, likewise.
    """

    latents: jax.Array
    source: jax.Array
    target: jax.Array
    empty: jax.Array
    control: PromptControl
    blend: LocalBlend

    @property
    def pictures(self) -> int:
        """P."""
        return self.latents.shape[0]

    @property
    def empties(self) -> jax.Array:
        """(P, L, D), the empty prompt for each picture."""
        return jnp.broadcast_to(self.empty, self.source.shape)


@struct.dataclass
class Edited:
    """What a method made of P pictures.

    Attributes:
        up: (U + 1, P, h, w, C), the pictures on their way up; the first are the pictures themselves.
        down: (N + 1, P, h, w, C), on the way down to the target; the last are the edited pictures.
        source: (N + 1, P, h, w, C), on the way down to the source, the method's reconstruction; None for a
            method that has none.
        maps: (2, P, mh, mw, L), attention to the words of source and target, summed over all steps; None for
            a method that does not look at it.
        masks: (N, P, h, w) bool, where the blend let the pictures change; None likewise.
        numbers: named arrays that tell how an inner optimization went.
    """

    up: jax.Array
    down: jax.Array
    source: jax.Array | None = None
    maps: jax.Array | None = None
    masks: jax.Array | None = None
    numbers: dict[str, jax.Array] = dataclasses.field(default_factory=dict)

    @property
    def latents(self) -> jax.Array:
        """(P, h, w, C), of the edited pictures."""
        return self.down[-1]


def edit_times(schedule_steps: int, steps: int, first_time: int) -> np.ndarray:
    """The times of N steps and 0 where they end, (N + 1,) int32, falling.

    They lie T // N apart, and the earliest is `first_time`: 1 in the published model files, 0 in the
    schedulers of the editing programs, whose last step down and first step up therefore change nothing.

    Raises:
        UserError: more steps than there are times.
    """
    ratio = schedule_steps // steps if steps > 0 else 0
    if ratio == 0 or (steps - 1) * ratio + first_time >= schedule_steps:
        raise UserError(
            f"{steps} steps do not fit into the model's {schedule_steps} times; choose between 1 and "
            f"{schedule_steps // 2}."
        )
    times = np.arange(steps)[::-1] * ratio + first_time
    return np.append(times, 0).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of the editing methods; see the module.

    Attributes:
        steps: N, on the way up and down.
        first_time: see `edit_times`.
        scale: s, of the guided prediction on the way down.
    """

    # Whether it must know what the pictures show, and whether the task's control and its blend mean anything.
    needs_source: ClassVar[bool] = True
    controls_attention: ClassVar[bool] = True
    blends: ClassVar[bool] = True

    steps: int = PUBLISHED_STEPS
    first_time: int = 0
    scale: float = PUBLISHED_SCALE

    def __post_init__(self) -> None:
        """Check what types cannot say. Raises UserError."""
        check_at_least(steps=(self.steps, 1), first_time=(self.first_time, 0))

    def times(self, denoiser: Denoiser) -> jax.Array:
        """(N + 1,) int32, falling to 0. Raises UserError where they do not fit."""
        return jnp.asarray(edit_times(denoiser.schedule.steps, self.steps, self.first_time))

    def __call__(self, task: EditTask, denoiser: Denoiser, key: jax.Array) -> Edited:
        """Edit the pictures of a task; `key` draws the noise of the methods that need some."""
        raise NotImplementedError


def per_step(array: jax.Array, steps: int) -> jax.Array:
    """The same at every step: (N, *shape)."""
    return jnp.broadcast_to(array, (steps, *array.shape))
