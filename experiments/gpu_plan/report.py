"""A plan as a table in the terminal, as JSON, and as a page of all JSON files in a folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ge3d_jax.core.files import atomic_path
from ge3d_jax.runs.folder import slug, write_json
from gpu_plan.plan import FITS

_PAGE = "README.md"
# Width of the table in characters if the output is not a terminal.
_WIDTH = 120
_PART_COLUMNS = ("part", "launches", "GB moved", "TFLOP", "at least, ms")
_SUMMARY_COLUMNS = (
    "card",
    "networks in",
    "splats",
    "memory",
    "fits",
    "launches",
    "without UNet and VAE",
    "GB moved",
    "TFLOP",
    "at least, ms",
)
_LOSS_COLUMNS = ("loss", *_SUMMARY_COLUMNS[3:])
_KERNEL_COLUMNS = ("card", "kernel", "registers", "shared memory", "spilled")
_NETWORKS = ("UNet", "VAE")

_HEAD = """\
# What a run takes on a card

Written by `experiments/plan_gpu.py`; do not edit. **Nothing here was measured**: it is read from the
program that XLA compiles for each card, on a machine without one.

*Memory* is XLA's plan of an iteration, plus what the iteration does not use, such as the text encoder.
It *fits* if that is at most the 75 % of a card that JAX takes by default. *Launches* are the kernels
started in an iteration, counting loops as often as they turn: the network's for all nodes, the renderer's as
counted for a ball of gray splats, with the renderer of that date. *GB moved* counts every kernel's operands
and results once, without what caches save. *TFLOP* are those of products, convolutions, and attention. *At
least* is a lower bound: for each kernel, the time of its bytes at the card's bandwidth or of its products at
the card's published rate, whichever is longer. Launches come on top, at a few microseconds each, and so does
whatever a kernel falls short of both rates. Where there are several numbers, they are for several fields of
view.
"""


def _sum(parts: Mapping[str, Mapping[str, float]], field: str) -> float:
    return sum(part[field] for part in parts.values())


def _outside(parts: Mapping[str, Mapping[str, float]]) -> int:
    """Launches outside the networks."""
    return round(sum(part["launches"] for name, part in parts.items() if not name.startswith(_NETWORKS)))


def _row(name: str, part: Mapping[str, float]) -> list[str]:
    return [
        name,
        f"{part['launches']:,}",
        f"{part['bytes'] / 1e9:.1f}",
        f"{part['operations'] / 1e12:.2f}",
        f"{part['seconds'] * 1e3:.1f}",
    ]


def _part_rows(scene: Mapping[str, Any]) -> list[list[str]]:
    parts = scene["parts"]
    fields = ("launches", "bytes", "operations", "seconds")
    whole = {field: _sum(parts, field) for field in fields}
    return [*(_row(name, part) for name, part in parts.items()), _row("all", whole)]


def _over_scenes(content: Mapping[str, Any], number: Any) -> str:
    """A number of each of the scenes, or a single one where they are the same."""
    values = [f"{number(scene['parts']):,.0f}" for scene in content["scenes"]]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def _summary(content: Mapping[str, Any]) -> list[str]:
    memory, parts = content["memory"], content["scenes"][0]["parts"]
    return [
        f"{memory['needed'] / 1e9:.1f} GB",
        memory["fits"],
        _over_scenes(content, lambda parts: _sum(parts, "launches")),
        _over_scenes(content, _outside),
        f"{_sum(parts, 'bytes') / 1e9:.0f}",
        f"{_sum(parts, 'operations') / 1e12:.1f}",
        _over_scenes(content, lambda parts: 1e3 * _sum(parts, "seconds")),
    ]


def _fovs(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{scene['fov']:g}" for scene in content["scenes"])


def memory_sentence(content: Mapping[str, Any]) -> str:
    """Whether it fits, with the settings that lower what it needs."""
    memory = content["memory"]
    sentence = (
        f"{memory['needed'] / 1e9:.2f} GB: {memory['arguments'] / 1e9:.2f} for the model and the splats, "
        f"{memory['results'] / 1e9:.2f} for results, {memory['between'] / 1e9:.2f} between, "
        f"{memory['outside'] / 1e9:.2f} for what it does not use, such as the text encoder. "
        f"Fits the card's {memory['card'] / 1e9:.1f} GB: {memory['fits']}."
    )
    if memory["fits"] == FITS:
        return sentence
    settings = " and ".join(f"--set={remedy}" for remedy in memory["remedies"])
    return f"{sentence} {settings or 'Lower views or image_size.'}" + (" lowers it." if settings else "")


def print_plan(content: Mapping[str, Any]) -> None:
    """Print a plan in the terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(
        f"{content['title']}: {content['preset']}, {content['guidance']}, {content['dtype']}, "
        f"{content['splats']:,} splats, {content['views']} views of {content['image_size']} px"
    )
    console.print(f"Memory as the compiler plans it: {memory_sentence(content)}")
    for scene in content["scenes"]:
        table = Table(*_PART_COLUMNS, title=f"one iteration, field of view {scene['fov']:g}; estimates")
        for row in _part_rows(scene):
            table.add_row(*row)
        console.print(table)
        console.print(f"Questions to the host, for which the card waits: {scene['questions']:,}")
        for operation in scene["unknown_loops"]:
            console.print(f"A loop of unknown length, counted once: {operation}")
    for kernel in content["kernels"]:
        console.print(
            f"{kernel['name']}: {kernel['registers']} registers, {kernel['shared']} bytes of shared memory, "
            f"{kernel['spilled']} bytes spilled"
        )


def _file_name(card: str, asked: Mapping[str, Any]) -> str:
    words = [card, asked["preset"], asked["guidance"], asked["dtype"], f"{asked['splats'] // 1000}k"]
    words += [slug(f"{name} {value}") for name, value in asked["settings"].items()]
    return "-".join(words).replace("/", "-") + ".json"


def path_of(content: Mapping[str, Any], folder: Path) -> Path:
    """Where a plan is stored; takes what `Row.asked` says of it, too."""
    return folder / _file_name(content["card"], content)


def save(content: dict[str, Any], folder: Path) -> Path:
    """Write JSON to `folder`, and the folder's page anew."""
    path = path_of(content, folder)
    write_json(path, content)
    with atomic_path(folder / _PAGE) as page:
        page.write_text(_markdown(folder), encoding="utf-8")
    return path


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def _markdown(folder: Path) -> str:
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    # The fastest card first.
    contents.sort(key=lambda row: (-row["rates"]["bandwidth"], row["dtype"], row["splats"]))
    lines = [_HEAD]
    usual = [row for row in contents if row["guidance"] == "ge3d" and not row["settings"]]
    if usual:
        lines += [f"## Cards, GE3D, fields of view {_fovs(usual[0])}", ""]
        lines += _table(
            _SUMMARY_COLUMNS,
            [[row["title"], row["dtype"], f"{row['splats']:,}", *_summary(row)] for row in usual],
        )
    losses = [row for row in contents if row["card"] == "h100" and row["dtype"] == "bfloat16"]
    losses = [row for row in losses if row["splats"] == min(each["splats"] for each in losses)]
    if len(losses) > 1:
        lines += [f"## Every loss, {losses[0]['title']}, {losses[0]['splats']:,} splats, bfloat16", ""]
        lines += _table(_LOSS_COLUMNS, [[row["guidance"], *_summary(row)] for row in losses])
    kernels = [
        [row["title"], *(str(kernel[field]) for field in ("name", "registers", "shared", "spilled"))]
        for row in contents
        for kernel in row["kernels"]
    ]
    if kernels:
        lines += ["## Kernels of our own", "", *_table(_KERNEL_COLUMNS, kernels)]
    for row in contents:
        scene = row["scenes"][0]
        packages = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        lines += [
            f"## {row['title']}: {row['guidance']}, {row['dtype']}, {row['splats']:,} splats",
            "",
            f"{row['views']} views of {row['image_size']} px, preset {row['preset']}, a buffer of "
            f"{row['buffer']:,} entries a view, field of view {scene['fov']:g}; {row['date']}, {packages}.",
            "",
            memory_sentence(row),
            f"Questions to the host: {scene['questions']:,}.",
            "",
            *_table(_PART_COLUMNS, _part_rows(scene)),
        ]
    return "\n".join(lines)
