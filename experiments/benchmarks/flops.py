"""Counting the useful arithmetic of a function: its matrix products and convolutions.

XLA's own count includes neither the number of turns of a loop nor what cuDNN's calls compute, so the
operations are counted in the traced program. A product of M×K by K×N counts 2·M·N·K; everything else (norms,
activations, softmax) is ignored.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def _dot_flop(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shared = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * shared * math.prod(equation.outvars[0].aval.shape)


def _convolution_flop(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    outputs_axis = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[outputs_axis]
    # The backward pass of a strided convolution dilates its input; products with the zeros do not count.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2 * per_output * math.prod(equation.outvars[0].aval.shape) // zeros


def _inner(equation: Any) -> Iterator[Any]:
    """The programs that an equation calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _jaxpr_flop(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot_flop(equation)
        elif name == "conv_general_dilated":
            total += _convolution_flop(equation)
        else:
            inner = [_jaxpr_flop(program) for program in _inner(equation)]
            if name == "cond":
                total += max(inner)
            else:
                total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
    return total


def count_flop(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations of the products and convolutions in `function(*arguments)`.

    Args:
        function: traced, not run. Loops of unknown length count once, and of several branches the most
            expensive one counts. Attention must be plain: cuDNN's hides its products.
        *arguments: arrays, or shapes as `jax.ShapeDtypeStruct`.

    Returns:
        The number of operations.
    """
    return _jaxpr_flop(jax.make_jaxpr(function)(*arguments).jaxpr)
