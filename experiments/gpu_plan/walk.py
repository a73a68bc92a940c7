"""How often each kernel of a compiled iteration is launched, and which part of the iteration it belongs to.

A loop counts as often as it turns; where the compiler does not know that, the caller says it. Of a condition
the branch with the most launches counts. Each turn of a loop that the compiler does not know, and each
condition, is a question to the host: the card waits until it has looked at a number.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping

from gpu_plan.costs import FREE, Cost, Costs
from gpu_plan.program import Instruction, Program

VAE = "VAE, forward"
VAE_BACK = "VAE, back"
TILES = "projection and tiles"
COMPOSITING = "compositing, forward"
COMPOSITING_BACK = "compositing, back"
REST = "the rest"
_UNET = "UNet2DConditionModel"
_UNET_BATCH = "UNet, {} samples"
_UNET_BACK = "UNet, back"
# Of the renderer; its other files composite.
_BEFORE_COMPOSITING = ("projection.py", "tiles.py", "gaussians.py")
_WITHOUT_RENDERING = ("cameras.py", "density.py", "mcmc.py")


@dataclasses.dataclass(frozen=True)
class Loop:
    """A loop whose number of turns the compiler does not know.

    Attributes:
        key: see `loop_key`.
        operation: where it is in the traced program.
    """

    key: str
    operation: str


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel, and how often it is launched in an iteration.

    Attributes:
        cost: of one launch.
        times: launches.
        part: of the iteration.
        operation: JAX's name of the place, for a closer look.
    """

    cost: Cost
    times: float
    part: str
    operation: str


@dataclasses.dataclass
class Walk:
    """All launches of an iteration.

    Attributes:
        launches: of kernels.
        questions: to the host, by part.
        unknown: operations of the loops of which nobody knew the number of turns; they count once.
    """

    launches: list[Launch]
    questions: collections.Counter[str]
    unknown: list[str]


def loop_key(operation: str) -> str:
    """What names a loop in the iteration and in the renderer by itself: the place from its derivative on."""
    found = re.search(r"/((?:transpose|jvp)\(.*)", operation.replace("jit(main)/", ""))
    return found[1] if found else operation


def _part_of(program: Program, instruction: Instruction) -> str | None:
    """The part that an instruction names itself, None where it names none."""
    operation = instruction.operation
    is_back = "transpose(" in operation
    if _UNET in operation:
        return _UNET_BACK if is_back else _UNET
    if "AutoencoderKL" in operation:
        return VAE_BACK if is_back else VAE
    place = next(program.places(instruction), None)
    if place is None or not place[0].startswith("splatting/"):
        return None
    name = place[0].removeprefix("splatting/")
    if name in _WITHOUT_RENDERING:
        return None
    if name in _BEFORE_COMPOSITING:
        return TILES
    return COMPOSITING_BACK if is_back else COMPOSITING


class _Walker:
    def __init__(self, program: Program, turns: Callable[[Loop], float | None]) -> None:
        self.program = program
        self.costs = Costs(program)
        self.turns = turns
        self.walk = Walk([], collections.Counter(), [])

    def kernels(self, name: str) -> Iterator[Instruction]:
        """Instructions of a computation that take time, with those of what it calls in place."""
        for instruction in self.program.computations.get(name, []):
            if instruction.kind in FREE:
                continue
            called = instruction.called("to_apply") or instruction.called("calls")
            if instruction.kind in ("call", "async-start") and called:
                yield from self.kernels(called)
            else:
                yield instruction

    def visit(self, name: str, times: float, around: str) -> None:
        """Add what a computation launches; `around` is the part that surrounds it."""
        kernels = list(self.kernels(name))
        own = [_part_of(self.program, kernel) for kernel in kernels]
        named = collections.Counter(part for part in own if part is not None)
        is_entry = name == self.program.entry
        # What names no part belongs to what is around it: to most of its loop's body.
        usual = REST if is_entry else (named.most_common(1)[0][0] if named else around)
        if _UNET in named:
            passes = _UNET_BATCH.format(self._samples(kernels))
            own = [passes if part == _UNET else part for part in own]
            usual = passes if usual == _UNET else usual
        for kernel, part in zip(kernels, own, strict=True):
            self._visit_kernel(kernel, part or usual, times)

    def _samples(self, kernels: list[Instruction]) -> int | str:
        """How many samples a pass of the UNet takes: the leading dimension of its convolutions."""
        sizes = collections.Counter(
            kernel.arrays[0].shape[0]
            for kernel in kernels
            if _UNET in kernel.operation
            and len(kernel.arrays[0].shape) == 4
            and self.costs.of(kernel).kind == "convolution"
        )
        return sizes.most_common(1)[0][0] if sizes else "?"

    def _visit_kernel(self, kernel: Instruction, part: str, times: float) -> None:
        if kernel.kind == "while":
            self._visit_loop(kernel, part, times)
        elif kernel.kind == "conditional":
            self.walk.questions[part] += round(times)
            branches = re.findall(r"[\w.\-]+", kernel.attribute(r"branch_computations=\{([^}]*)\}") or "")
            branches += [kernel.called(name) or "" for name in ("true_computation", "false_computation")]
            self.visit(max(branches, key=self._length), times, part)
        else:
            self.walk.launches.append(Launch(self.costs.of(kernel), times, part, kernel.operation))

    def _visit_loop(self, kernel: Instruction, part: str, times: float) -> None:
        known = kernel.attribute(r'"known_trip_count":\{"n":"(\d+)"')
        body = kernel.called("body") or ""
        if known is not None:
            self.visit(body, times * int(known), part)
            return
        turns = self.turns(Loop(loop_key(kernel.operation), kernel.operation))
        if turns is None:
            self.walk.unknown.append(kernel.operation)
            turns = times
        # Asked once more than it turns.
        self.walk.questions[part] += round(turns + times)
        self.visit(kernel.called("condition") or "", turns + times, part)
        self.visit(body, turns, part)

    def _length(self, name: str) -> int:
        return sum(1 for _ in self.kernels(name)) if name else -1


def walk(program: Program, turns: Callable[[Loop], float | None]) -> Walk:
    """Every launch of an iteration.

    Args:
        program: compiled.
        turns: the number of turns in all of a loop that the compiler does not know, None where unknown.
    """
    walker = _Walker(program, turns)
    walker.visit(program.entry, 1, REST)
    return walker.walk


def by_part(walked: Walk) -> Mapping[str, list[Launch]]:
    """The launches by part, those with the most bytes first."""
    parts: dict[str, list[Launch]] = {}
    for launch in walked.launches:
        parts.setdefault(launch.part, []).append(launch)
    return dict(
        sorted(parts.items(), key=lambda item: -sum(launch.cost.moved * launch.times for launch in item[1]))
    )
