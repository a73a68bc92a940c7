"""Measurements as a table in the terminal, as JSON, and as a page of all JSON files in a folder."""

import dataclasses
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Measurement, device_name
from ge3d_jax.core.files import atomic_path
from ge3d_jax.runs.folder import slug, versions, write_json

OURS = "ge3d_jax"
_COLUMNS = (
    "work",
    "by",
    "median",
    "fastest",
    "TFLOP/s",
    "of matmul",
    "memory",
    "compile",
    "ours/theirs",
    "note",
)
# Width of the table in characters if the output is not a terminal.
_WIDTH = 120
_NOTHING = "–"
_PAGE = "README.md"
_BENCHMARKS = ("unet", "vae", "step")

# Goals on a GPU.
_GPU_TARGETS = (
    ("UNet in bfloat16, batch 16: fraction of the matmul rate", "≥ 50%"),
    ("one `paper` iteration on an H100", "≤ 0.27 s"),
    ("one `paper` iteration, ours / PyTorch eager", "≤ 0.5"),
    ("one `paper` iteration, ours / PyTorch compiled", "≤ 0.8"),
)


def report(
    benchmark: str,
    measurements: Sequence[Measurement],
    *,
    settings: dict[str, Any],
    dtype: jnp.dtype,
    matmul_flop_per_second: float,
) -> dict[str, Any]:
    """The results of one run, ready for JSON.

    Args:
        benchmark: "unet", "vae" or "step".
        measurements: its rows.
        settings: the run's settings, by name.
        dtype: precision of the networks.
        matmul_flop_per_second: from `matmul_rate`, for the same dtype.

    Returns:
        The content of the JSON file.
    """
    rows = [
        dataclasses.asdict(row)
        | {
            "median_seconds": row.median,
            "flop_per_second": row.flop_per_second,
            "share_of_matmul_rate": _share(row.flop_per_second, matmul_flop_per_second),
            "ours_over_theirs": _ratio(row, measurements),
        }
        for row in measurements
    ]
    return {
        "benchmark": benchmark,
        "device": device_name(),
        "platform": jax.default_backend(),
        "date": datetime.date.today().isoformat(),
        "dtype": jnp.dtype(dtype).name,
        "settings": settings,
        "matmul_flop_per_second": matmul_flop_per_second,
        "rows": rows,
        "versions": versions(),
    }


def _share(rate: float | None, best: float) -> float | None:
    return rate / best if rate else None


def _ratio(row: Measurement, measurements: Sequence[Measurement]) -> float | None:
    """Our median divided by the row's, for the same work; None for our own rows."""
    ours = [other.median for other in measurements if other.work == row.work and other.implementation == OURS]
    if row.implementation == OURS or not row.median or not ours or ours[0] is None:
        return None
    return ours[0] / row.median


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _NOTHING
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _cells(row: dict[str, Any]) -> list[str]:
    def words(name: str, form: str, scale: float = 1.0) -> str:
        return _NOTHING if row[name] is None else form.format(row[name] * scale)

    return [
        row["work"],
        row["implementation"],
        _time(row["median_seconds"]),
        _time(min(row["seconds"], default=None)),
        words("flop_per_second", "{:.3f}", 1e-12),
        words("share_of_matmul_rate", "{:.0%}"),
        words("peak_bytes", "{:,.0f} MB", 1e-6),
        _time(row["compile_seconds"]),
        words("ours_over_theirs", "{:.2f}"),
        row["note"],
    ]


def _title(content: dict[str, Any]) -> str:
    named = ", ".join(f"{name} {value}" for name, value in content["settings"].items())
    return f"{content['benchmark']}: {content['device']}, {content['dtype']}, {named}, {content['date']}"


def print_table(content: dict[str, Any]) -> None:
    """Print the result of `report` in the terminal."""
    table = Table(*_COLUMNS, title=_title(content))
    for row in content["rows"]:
        table.add_row(*_cells(row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)
    rate = content["matmul_flop_per_second"] / 1e12
    console.print(f"matmul rate {rate:.3f} TFLOP/s; TFLOP count matrix products and convolutions only")


def save(content: dict[str, Any], folder: Path) -> Path:
    """Write JSON to `folder`, named after benchmark, device and model size, and update the folder's page."""
    name = f"{content['benchmark']}-{content['settings']['model_size']}-{content['dtype']}"
    path = folder / f"{name}-{slug(content['device'])}.json"
    write_json(path, content)
    with atomic_path(folder / _PAGE) as page:
        page.write_text(_markdown(folder), encoding="utf-8")
    return path


def _markdown(folder: Path) -> str:
    """The page of the networks' and the iteration's JSON files in a folder."""
    files = [file for name in _BENCHMARKS for file in sorted(folder.glob(f"{name}-*.json"))]
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    lines = [
        "# Benchmarks",
        "",
        "Written by `experiments/benchmark_unet.py`, `benchmark_vae.py`, and `benchmark_step.py`; do not",
        "edit. Weights are random. TFLOP/s count only matrix products and convolutions, at the median, and",
        "*of matmul* is that rate as a fraction of the device's own for large products. A median far above",
        "the fastest run means that the machine was busy with other work. *ours/theirs* is our time over",
        "that row's, from the same process: below 1, ours is faster.",
        "",
    ]
    for content in contents:
        rate = content["matmul_flop_per_second"] / 1e12
        packages = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
        lines += [
            f"## {_title(content)}",
            "",
            f"Matmul rate {rate:.3f} TFLOP/s. {packages}.",
            "",
            "| " + " | ".join(_COLUMNS) + " |",
            "|" + "---|" * len(_COLUMNS),
            *("| " + " | ".join(_cells(row)) + " |" for row in content["rows"]),
            "",
        ]
    if not any(content["platform"] == "gpu" for content in contents):
        lines += ["## On a GPU", "", "Not measured yet.", "", "| what | goal | measured |", "|---|---|---|"]
        lines += [f"| {what} | {wanted} | |" for what, wanted in _GPU_TARGETS]
        lines.append("")
    return "\n".join(lines)
