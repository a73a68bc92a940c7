"""The rasterizer's times: a table in the terminal, JSON, and a page of all such files in a folder."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Measurement, device_name
from benchmarks.rendering import Case
from ge3d_jax.core.files import atomic_path
from ge3d_jax.runs.folder import slug, versions, write_json

_COLUMNS = (
    "splats",
    "px",
    "views",
    "pass",
    "ms per view",
    "CPU ms per view",
    "ns per splat",
    "ns per pixel",
    "ns per entry",
    "memory",
    "compile",
    "PyTorch, ms per view",
    "PyTorch / ours",
)
_WIDTH = 130
_NOTHING = "–"
_PAGE = "README.md"
_PREFIX = "render-"


def report(
    cases: Sequence[Case],
    ours: Sequence[Measurement],
    entries: Sequence[int],
    processor_seconds: Sequence[float | None],
    peer: Sequence[Measurement] | None,
    *,
    repetitions: int,
    date: datetime.date,
) -> dict[str, Any]:
    """The results of one run, ready for JSON.

    Args:
        cases: what was measured.
        ours: rows, from `rendering.measure`.
        entries: buffer lengths, from `rendering.measure`.
        processor_seconds: CPU seconds, from `rendering.measure`.
        peer: the peer's rows, if there is one.
        repetitions: number of timed runs.
        date: of the run.

    Returns:
        The content of the JSON file.
    """
    rows = []
    for index, (case, row, needed) in enumerate(zip(cases, ours, entries, strict=True)):
        theirs = None if peer is None else peer[index]
        rows.append(
            dataclasses.asdict(case)
            | {
                "entries": needed,
                "seconds": row.seconds,
                "median_seconds": row.median,
                "processor_seconds": processor_seconds[index],
                "peak_bytes": row.peak_bytes,
                "compile_seconds": row.compile_seconds,
                "torch_seconds": None if theirs is None else theirs.seconds,
                "torch_median_seconds": None if theirs is None else theirs.median,
                "torch_note": "" if theirs is None else theirs.note,
            }
        )
    return {
        "benchmark": "render",
        "device": device_name(),
        "platform": jax.default_backend(),
        "date": date.isoformat(),
        "repetitions": repetitions,
        "rows": rows,
        "versions": versions(),
    }


def busy_seconds(row: dict[str, Any], platform: str) -> float | None:
    """Seconds per view: on a CPU its own time, which other work on the machine hardly affects."""
    seconds = row["processor_seconds"] if platform == "cpu" else row["median_seconds"]
    return seconds / row["views"] if seconds else None


def _cells(row: dict[str, Any], platform: str) -> list[str]:
    def per(seconds: float | None, scale: float, count: int = 1) -> str:
        return f"{scale * seconds / count:,.0f}" if seconds else _NOTHING

    ours, theirs = row["median_seconds"], row["torch_median_seconds"]
    busy = busy_seconds(row, platform)
    return [
        f"{row['splats']:,}",
        str(row["size"]),
        str(row["views"]),
        row["work"],
        per(ours, 1e3, row["views"]),
        per(busy, 1e3),
        per(busy, 1e9, row["splats"]),
        per(busy, 1e9, row["size"] ** 2),
        per(busy, 1e9, row["entries"]),
        f"{row['peak_bytes'] / 1e6:,.0f} MB" if row["peak_bytes"] else _NOTHING,
        f"{row['compile_seconds']:.1f} s" if row["compile_seconds"] else _NOTHING,
        per(theirs, 1e3, row["views"]),
        f"{theirs / ours:.0f}" if theirs and ours else _NOTHING,
    ]


def _title(content: dict[str, Any]) -> str:
    return f"{content['device']}, {content['date']}, median of {content['repetitions']}"


def print_table(content: dict[str, Any]) -> None:
    """Print the result of `report` in the terminal."""
    table = Table(*_COLUMNS, title=_title(content))
    for row in content["rows"]:
        table.add_row(*_cells(row, content["platform"]))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)


def _name(content: dict[str, Any]) -> str:
    return f"{_PREFIX}{slug(content['device'])}"


def plot_path(content: dict[str, Any], folder: Path) -> Path:
    """Where the page expects the plot of the costs."""
    return folder / f"{_name(content)}.png"


def save(content: dict[str, Any], folder: Path) -> Path:
    """Write JSON to `folder`, named after the device, and update the folder's page."""
    path = folder / f"{_name(content)}.json"
    write_json(path, content)
    with atomic_path(folder / _PAGE) as page:
        page.write_text(_markdown(folder), encoding="utf-8")
    return path


def _markdown(folder: Path) -> str:
    """The page of all files of `save` in a folder, which may hold other JSON files too."""
    files = sorted(folder.glob(f"{_PREFIX}*.json"))
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    lines = [
        "# The rasterizer's times",
        "",
        "Written by `experiments/benchmark_render.py`; do not edit. The scene is a ball of splats, scale ∝",
        "N^(−1/3), that fills most of the image. An entry is a (tile, splat) pair. Several views are sharded",
        "across the cores; a single view runs on one. *ms per view* is elapsed time, which other work on the",
        "machine increases; the costs per splat, pixel and entry are from CPU time, which it hardly affects.",
        "Memory is that of the compiled program, including arguments and results. PyTorch is a vectorized",
        "renderer, every splat at every pixel in chunks, with autograd, on all cores, run once; *PyTorch /",
        "ours* is how many times as long it takes. Rows that take many minutes or gigabytes are left out.",
        "",
    ]
    for content in contents:
        packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        lines += [
            f"## {_title(content)}",
            "",
            f"{packages}.",
            "",
            "| " + " | ".join(_COLUMNS) + " |",
            "|" + "---|" * len(_COLUMNS),
            *("| " + " | ".join(_cells(row, content["platform"])) + " |" for row in content["rows"]),
            "",
        ]
        if plot_path(content, folder).exists():
            lines += [f"![cost per splat, pixel and entry]({plot_path(content, folder).name})", ""]
    if not any(content["platform"] == "gpu" for content in contents):
        lines += [
            "## On a GPU",
            "",
            "Not measured yet.",
            "",
            "| splats | px | views | pass | ours | gsplat | splax |",
            "|---|---|---|---|---|---|---|",
            "| | | | | | | |",
            "",
        ]
    return "\n".join(lines)
