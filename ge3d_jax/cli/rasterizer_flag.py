"""The flag that chooses the rasterizer, shared by all scripts that make or show splats."""

from absl import flags

_RASTERIZER = flags.DEFINE_enum(
    "rasterizer",
    None,
    ["auto", "kernel", "xla"],
    "What renders the splats. auto, the default: on an NVIDIA GPU the kernel if it has passed its check, "
    "else xla. They differ in speed, and by rounding.",
)


def chosen() -> str:
    """The rasterizer, whether or not the flag was given."""
    return _RASTERIZER.value or "auto"


def given() -> dict[str, str]:
    """The setting selected by the flag; empty if the flag was not given."""
    return {} if _RASTERIZER.value is None else {"scene.rasterizer": _RASTERIZER.value}
