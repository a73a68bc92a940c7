"""The flag that chooses what renders splats, the same in every script that makes some."""

from absl import flags

_RASTERIZER = flags.DEFINE_enum(
    "rasterizer",
    None,
    ["auto", "kernel", "xla"],
    "What renders the splats. auto, the default: on an NVIDIA GPU the kernel if it has passed its check, "
    "else xla. They differ in speed, and by rounding.",
)


def given() -> dict[str, str]:
    """The setting that the flag asks for; none where it was not given."""
    return {} if _RASTERIZER.value is None else {"scene.rasterizer": _RASTERIZER.value}
