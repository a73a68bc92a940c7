"""What an iteration takes on a card, as numbers for JSON: memory, and launches, bytes and arithmetic by part.

Nothing here was measured. The roofline time is the least that the card's bandwidth and its rate of products
allow, kernel by kernel the longer of both; what launches cost comes on top and is not in it.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from ge3d_jax.runs.folder import versions
from gpu_plan.cards import Card
from gpu_plan.compiling import Compiled
from gpu_plan.costs import Cost
from gpu_plan.program import read_program
from gpu_plan.walk import Launch, Walk, by_part, walk

# What JAX takes of a card unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise, and what it may be told to.
USUAL_SHARE = 0.75
LARGEST_SHARE = 0.95
FITS, FITS_BARELY, FITS_NOT = "yes", "if JAX may take 95 % of it", "no"


def verdict(needed: int, memory: int) -> str:
    """Whether a run fits a card: one of FITS, FITS_BARELY, FITS_NOT.

    Args:
        needed: bytes in all.
        memory: of the card, bytes.
    """
    if needed <= USUAL_SHARE * memory:
        return FITS
    return FITS_BARELY if needed <= LARGEST_SHARE * memory else FITS_NOT


def least_seconds(cost: Cost, card: Card) -> float:
    """The roofline time of one launch: the longer of moving its bytes and of its products."""
    rate = card.bfloat16_rate if cost.is_half else card.float32_rate
    return max(cost.moved / card.bandwidth, cost.operations / rate)


def _part(launches: Sequence[Launch], card: Card) -> dict[str, float]:
    others = [
        launch for launch in launches if launch.cost.kind not in ("product", "convolution", "attention")
    ]
    return {
        "launches": round(sum(launch.times for launch in launches)),
        "bytes": round(sum(launch.times * launch.cost.moved for launch in launches)),
        "other_bytes": round(sum(launch.times * launch.cost.moved for launch in others)),
        "operations": round(sum(launch.times * launch.cost.operations for launch in launches)),
        "seconds": sum(launch.times * least_seconds(launch.cost, card) for launch in launches),
    }


def _scene(walked: Walk, card: Card, fov: float) -> dict[str, Any]:
    parts = {name: _part(launches, card) for name, launches in by_part(walked).items()}
    return {
        "fov": fov,
        "questions": sum(walked.questions.values()),
        "unknown_loops": walked.unknown,
        "parts": parts,
    }


def plan(
    compiled: Compiled,
    card: Card,
    *,
    asked: Mapping[str, Any],
    scenes: Mapping[float, Mapping[str, int]],
) -> dict[str, Any]:
    """The content of a row's JSON file.

    Args:
        compiled: the iteration.
        card: what it was compiled for.
        asked: what of, from `Row`.
        scenes: turns of the renderer's loops, by `loop_key`, for cameras of each field of view in radians.
    """
    program, memory = read_program(compiled.text), compiled.compilation
    needed = memory.total + compiled.outside

    def of_scene(fov: float, turns: Mapping[str, int]) -> dict[str, Any]:
        return _scene(walk(program, lambda loop: turns.get(loop.key)), card, fov)

    return {
        **asked,
        "title": card.title,
        "date": datetime.date.today().isoformat(),
        "compile_seconds": round(memory.seconds, 1),
        "memory": {
            "arguments": memory.arguments,
            "results": memory.outputs,
            "between": memory.temporaries,
            "outside": compiled.outside,
            "needed": needed,
            "card": card.memory,
            "fits": verdict(needed, card.memory),
            "remedies": compiled.remedies,
        },
        "rates": {"bandwidth": card.bandwidth, "bfloat16": card.bfloat16_rate, "float32": card.float32_rate},
        "scenes": [of_scene(fov, turns) for fov, turns in scenes.items()],
        "kernels": [vars(kernel) for kernel in compiled.kernels],
        "versions": versions(),
    }
