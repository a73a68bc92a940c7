"""What one kernel of a compiled program reads, writes and multiplies.

Bytes: every operand and the result once; of what is sliced or gathered the slice, of what is updated in place
the update. What caches save, and what a kernel reads twice, is not known here. Operations: those of matrix
products, convolutions and cuDNN's attention, two for a multiplication and an addition; everything else is
left out, and so are the insides of kernels of our own.
"""

import dataclasses
import json
import re
from collections.abc import Mapping

from gpu_plan.program import Array, Instruction, Program

# What costs nothing at run time: names, and views of memory that is there.
FREE = frozenset(
    "parameter tuple get-tuple-element constant bitcast opt-barrier after-all iota add-dependency "
    "async-done copy-done async-update partition-id replica-id".split()
)
# Kernels of our own, written in Pallas.
OUR_KERNELS = ("__gpu$xla.gpu.triton", "triton_kernel_call", "mosaic_gpu", "mosaic_gpu_v2")

_SLICES = ("dynamic-slice", "gather", "slice")
# Products of this attention forward, and backward, where its weights are computed again.
_ATTENTION_PRODUCTS, _ATTENTION_PRODUCTS_BACK = 2, 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a kernel does once.

    Attributes:
        kind: "product", "convolution", "attention", "sort", "ours", "copy", or "fusion" and others that XLA
            wrote.
        moved: bytes read and written.
        operations: multiplications and additions in products.
        is_half: whether the products are of bfloat16 or float16 numbers.
    """

    kind: str
    moved: int
    operations: int
    is_half: bool


def _product(numbers: tuple[int, ...]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def _dot(result: Array, left: Array, contracted: list[int]) -> int:
    return 2 * result.count * _product(tuple(left.shape[axis] for axis in contracted))


def _axes(text: str | None) -> list[int]:
    return [int(axis) for axis in re.findall(r"\d+", text or "")]


def _convolution(instruction: Instruction, operands: list[Array]) -> int:
    """Operations of a convolution of any direction: those of the forward one with the same three arrays."""
    labels = instruction.attribute(r"dim_labels=(\S+?)(?:,|$)")
    if labels is None or len(operands) < 2:
        return 0
    _, kernel_labels, _ = re.split(r"_|->", labels)
    result = instruction.arrays[0]
    # Which of the arrays is the kernel, and which the output of the forward convolution.
    if "BackwardFilter" in instruction.target:
        kernel, output = result, operands[1]
    elif "BackwardInput" in instruction.target:
        kernel, output = operands[1], operands[0]
    else:
        kernel, output = operands[1], result
    outputs = kernel.shape[kernel_labels.index("o")]
    return 2 * output.count * kernel.count // outputs


def _attention(instruction: Instruction, operands: list[Array]) -> int:
    """Operations of cuDNN's attention of queries (B, S, H, D)."""
    logits = instruction.attribute(r'"intermediate_tensor_shape": ?\{[^}]*?"dimensions": ?\[([^\]]*)\]')
    products = _ATTENTION_PRODUCTS_BACK if "Backward" in instruction.target else _ATTENTION_PRODUCTS
    return 2 * products * operands[0].shape[-1] * _product(tuple(_axes(logits)))


def _is_half(arrays: list[Array]) -> bool:
    return bool(arrays) and all(array.type in ("bf16", "f16") for array in arrays[:2])


class Costs:
    """Costs of the kernels of one program."""

    def __init__(self, program: Program) -> None:
        """Find what each instruction results in."""
        self._program = program
        self._by_name: dict[str, Instruction] = {
            instruction.name: instruction
            for instructions in program.computations.values()
            for instruction in instructions
        }

    def _arrays(self, instruction: Instruction) -> list[Array]:
        """The operands' arrays."""
        known = (self._by_name[name] for name in instruction.operands if name in self._by_name)
        return [array for operand in known for array in operand.arrays]

    def of(self, instruction: Instruction) -> Cost:
        """What the kernel of an instruction costs once."""
        operands = self._arrays(instruction)
        if instruction.kind == "fusion":
            return self._fusion(instruction)
        if instruction.kind == "custom-call":
            return self._call(instruction, operands)
        moved = self._moved(instruction, {})
        if instruction.kind == "dot":
            contracted = _axes(instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
            operations = _dot(instruction.arrays[0], operands[0], contracted)
            return Cost("product", moved, operations, _is_half(operands))
        if instruction.kind == "convolution":
            return Cost("convolution", moved, _convolution(instruction, operands), _is_half(operands))
        return Cost(instruction.kind, moved, 0, False)

    def _call(self, instruction: Instruction, operands: list[Array]) -> Cost:
        target = instruction.target
        moved = instruction.size + sum(array.size for array in operands)
        if target.startswith(("__cublas", "__cudnn")) and len(instruction.arrays) > 1:
            # Room for the library to work in, which need not be read or written.
            moved -= instruction.arrays[-1].size if instruction.arrays[-1].type in ("u8", "s8") else 0
        if target.startswith("__cublas"):
            settings = instruction.attribute(r"backend_config=(\{.*\})") or "{}"
            numbers = json.loads(settings).get("gemm_backend_config", {}).get("dot_dimension_numbers", {})
            contracted = [int(axis) for axis in numbers.get("lhs_contracting_dimensions", [])]
            operations = _dot(instruction.arrays[0], operands[0], contracted)
            return Cost("product", moved, operations, _is_half(operands))
        if target.startswith("__cudnn$conv"):
            return Cost("convolution", moved, _convolution(instruction, operands), _is_half(operands))
        if target.startswith("__cudnn$fmha"):
            return Cost("attention", moved, _attention(instruction, operands), _is_half(operands))
        if target in OUR_KERNELS:
            return Cost("ours", moved, 0, False)
        return Cost("sort" if "ort" in target else target, moved, 0, False)

    def _fusion(self, instruction: Instruction) -> Cost:
        inside = self._program.computations.get(instruction.called("calls") or "", [])
        operations, is_half, kind = 0, False, "fusion"
        for inner in inside:
            if inner.kind not in ("dot", "convolution"):
                continue
            cost = self.of(inner)
            operations, is_half, kind = operations + cost.operations, cost.is_half, cost.kind
        given = [self._by_name[name] for name in instruction.operands if name in self._by_name]
        return Cost(kind, self._moved_by_fusion(inside, given), operations, is_half)

    def _moved(self, instruction: Instruction, given: Mapping[str, int]) -> int:
        """Bytes of an instruction by itself."""
        operands = [self._by_name[name] for name in instruction.operands if name in self._by_name]
        if instruction.kind in _SLICES:
            return 2 * instruction.size
        if instruction.kind == "dynamic-update-slice":
            return 2 * operands[1].size
        if instruction.kind == "scatter":
            return 2 * operands[-1].size
        return instruction.size + sum(operand.size for operand in operands)

    def _moved_by_fusion(self, inside: list[Instruction], given: list[Instruction]) -> int:
        users: dict[str, list[Instruction]] = {}
        by_name = {inner.name: inner for inner in inside}
        for inner in inside:
            for name in inner.operands:
                users.setdefault(name, []).append(inner)
        parameters = [inner for inner in inside if inner.kind == "parameter"]
        read = sum(self._read(parameter, users) for parameter in parameters)
        roots = [inner for inner in inside if inner.is_root]
        results = [by_name[name] for root in roots if root.kind == "tuple" for name in root.operands] or roots
        return read + sum(self._written(result, by_name) for result in results)

    def _read(self, parameter: Instruction, users: Mapping[str, list[Instruction]]) -> int:
        """Bytes of a fusion's parameter that are read."""
        total = 0
        for user in users.get(parameter.name, []):
            if user.kind == "bitcast":
                total += self._read(user, users)
            elif user.kind in _SLICES and user.operands[0] == parameter.name:
                total += user.size
            elif user.kind in ("dynamic-update-slice", "scatter") and user.operands[0] == parameter.name:
                # Updated in place: what is not written stays as it is.
                continue
            else:
                return parameter.size
        return min(total, parameter.size)

    def _written(self, result: Instruction, by_name: Mapping[str, Instruction]) -> int:
        """Bytes of a fusion's result that are written."""
        while result.kind == "bitcast" and result.operands and result.operands[0] in by_name:
            result = by_name[result.operands[0]]
        if result.kind == "dynamic-update-slice":
            return by_name[result.operands[1]].size
        if result.kind == "scatter":
            return by_name[result.operands[-1]].size
        return result.size
