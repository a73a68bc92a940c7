"""What the networks compute in: bfloat16 where the device is made for it, else float32."""

import jax.numpy as jnp

from ge3d_jax.devices import computes_bfloat16
from ge3d_jax.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def compute_dtype(precision: str) -> jnp.dtype:
    """The type for one of PRECISIONS; "auto" asks what JAX runs on.

    float16 is not offered: attention of Stable Diffusion 2.1 overflows in it.

    Raises:
        UserError: another name.
    """
    if precision not in PRECISIONS:
        raise UserError(f"The type {precision!r} does not exist; choose one of {', '.join(PRECISIONS)}.")
    if precision == "auto":
        precision = "bfloat16" if computes_bfloat16() else "float32"
    return jnp.dtype(precision)
