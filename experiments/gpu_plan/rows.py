"""Which runs are planned for, and making the plan of one."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from benchmarks.iteration import splats_of, with_count

from ge3d_jax.core.settings import kind_of
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.training.config import Config
from ge3d_jax.training.presets import configured
from gpu_plan.cards import card
from gpu_plan.compiling import compile_iteration, mesh_of, size_of
from gpu_plan.plan import plan
from gpu_plan.turns import Start, scene_turns, with_buffer

_PAPER = "paper"
_USUAL = "ge3d"
_SPLATS = (100_000, 400_000)
_TYPES = ("bfloat16", "float32")
_CARDS = ("h100", "rtx4090", "a100", "rtx3060", "a6000")


@dataclasses.dataclass(frozen=True)
class Row:
    """A run on a card.

    Attributes:
        card: its name, or the file that describes it.
        preset: of the run.
        guidance: the loss by name; None for the preset's.
        dtype: what the networks compute in.
        splats: to begin with; None for the preset's.
        settings: that are changed, (name, value).
    """

    card: str
    preset: str = _PAPER
    guidance: str | None = None
    dtype: str = "bfloat16"
    splats: int | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def config(self) -> Config:
        """The settings of the run. Raises UserError."""
        # Point-E's weights are not needed to plan.
        config = configured(self.preset, guidance=self.guidance, start="ball", overrides=dict(self.settings))
        return with_count(config, self.splats)

    @property
    def asked(self) -> dict[str, Any]:
        """What the row is of, for its file. Raises UserError."""
        config = self.config
        return {
            "card": card(self.card).name,
            "preset": self.preset,
            "guidance": self.guidance or kind_of(config, "guidance"),
            "dtype": self.dtype,
            "splats": splats_of(config).start.count,
            "settings": dict(self.settings),
        }

    def made(self, fovs: Sequence[float]) -> dict[str, Any]:
        """The plan, ready for JSON; see `plan.plan`.

        Args:
            fovs: fields of view to count the renderer's steps for, radians.

        Raises:
            UserError: something that was asked for does not exist or does not go together.
        """
        chosen, config = card(self.card), self.config
        size, dtype = size_of(config, self.preset), jnp.dtype(self.dtype)
        # Before minutes of work: the compiler must take the specification.
        mesh_of(chosen)
        config = with_buffer(config, fovs)
        turns = scene_turns(Start.of(config), chosen.target, tuple(fovs))
        compiled = compile_iteration(config, size, dtype, chosen)
        seen = {
            "views": config.views,
            "image_size": config.image_size,
            "buffer": splats_of(config).buffer_capacity,
        }
        scenes = dict(zip(fovs, turns, strict=True))
        return plan(compiled, chosen, asked=self.asked | seen, scenes=scenes)


def published() -> Iterator[Row]:
    """The rows of docs/benchmarks/gpu_plan, the most wanted first; some come twice."""
    yield from (Row(card=name, guidance=_USUAL, splats=_SPLATS[0]) for name in _CARDS)
    yield Row(card=_CARDS[0], guidance=_USUAL, splats=_SPLATS[1])
    yield Row(card=_CARDS[0], guidance=_USUAL, splats=_SPLATS[0], dtype="float32")
    yield from (Row(card=_CARDS[0], guidance=name, splats=_SPLATS[0]) for name in LOSSES if name != _USUAL)
    for dtype in _TYPES:
        for splats in _SPLATS:
            yield from (Row(card=name, guidance=_USUAL, dtype=dtype, splats=splats) for name in _CARDS)
