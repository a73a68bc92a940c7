"""What changes a network beside its weights."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class Adapter:
    """Changes to a UNet that leave its weights alone.

    Attributes:
        lora: low-rank factors by layer, None for none.
        time_offset: (B, E), added to the time embedding, None for none.
    """

    lora: Any = None
    time_offset: jax.Array | None = None
