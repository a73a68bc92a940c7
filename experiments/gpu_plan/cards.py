"""Cards by name: their specification, as XLA's compiler reads it, and their published rates."""

import dataclasses
import re
from pathlib import Path

from ge3d_jax.core.devices import Target
from ge3d_jax.core.errors import UserError

_FOLDER = Path(__file__).parent / "cards"
_SUFFIX = ".txtpb"
# The rate is no part of the specification: a comment, which XLA skips.
_RATE = re.compile(r"^# .*bfloat16.*: ([\d.]+)$", re.MULTILINE)
_TERA = 1e12
_GIGA = 1e9


@dataclasses.dataclass(frozen=True)
class Card:
    """A card to compile for.

    Attributes:
        name: as it is asked for, "h100".
        title: the maker's name for it.
        specification: text of XLA's `GpuTargetConfigProto`.
        capability: compute capability, e.g. (9, 0).
        memory: bytes.
        bandwidth: bytes per second.
        float32_rate: operations per second outside of tensor cores, two for a multiplication and addition.
        bfloat16_rate: operations per second of dense bfloat16 products that are summed up in float32.
    """

    name: str
    title: str
    specification: str
    capability: tuple[int, int]
    memory: int
    bandwidth: float
    float32_rate: float
    bfloat16_rate: float

    @property
    def target(self) -> Target:
        """What to trace for."""
        return Target("gpu", self.capability)


def known_cards() -> list[str]:
    """Names of the cards whose specifications come with the project, the fastest first."""
    return sorted((path.stem for path in _FOLDER.glob(f"*{_SUFFIX}")), key=lambda name: -card(name).bandwidth)


def card(name: str) -> Card:
    """The card of that name, or that a specification file describes.

    Args:
        name: of one of `known_cards`, or the path of a file that ends in .txtpb.

    Raises:
        UserError: no such card, or a file that cannot be read or lacks something.
    """
    path = Path(name) if name.endswith(_SUFFIX) else _FOLDER / f"{name}{_SUFFIX}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if name.endswith(_SUFFIX):
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(
                f"The specification {name} cannot be read ({reason}); give a file such as those in {_FOLDER}."
            ) from None
        known = ", ".join(sorted(path.stem for path in _FOLDER.glob(f"*{_SUFFIX}")))
        raise UserError(
            f"The card {name!r} is not known; use one of {known}, or give a {_SUFFIX} file that describes it."
        ) from None
    return _parsed(path, text)


def _parsed(path: Path, text: str) -> Card:
    def found(pattern: str | re.Pattern[str], what: str) -> str:
        match = re.search(pattern, text)
        if match is None:
            raise UserError(
                f"The specification {path} has no {what}; compare it with {_FOLDER / 'h100.txtpb'}."
            )
        return match[1]

    def number(field: str, whole: bool = True) -> float:
        return float(found(rf"\b{field}: *({'[0-9]+' if whole else '[0-9.]+'})\b", field))

    # Each unit multiplies and adds once a cycle.
    units = number("core_count") * number("fpus_per_core")
    return Card(
        name=path.stem,
        title=found(r'device_description_str: *"([^"]+)"', "device_description_str"),
        specification=text,
        capability=(int(number("major")), int(number("minor"))),
        memory=int(number("device_memory_size")),
        bandwidth=number("memory_bandwidth"),
        float32_rate=2 * units * number("clock_rate_ghz", whole=False) * _GIGA,
        bfloat16_rate=float(found(_RATE, "comment with the rate of bfloat16 products")) * _TERA,
    )
