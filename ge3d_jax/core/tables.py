"""Human-readable Markdown tables and the formatting of their cells."""

from collections.abc import Mapping, Sequence


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows of text as a Markdown table; there is at least one row, and all have the same columns."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number_cell(value: float | None, digits: int, error: float | None = None) -> str:
    """Format a number with `digits` decimals, plus its standard error if there is one; – for None."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def counted(number: int, name: str) -> str:
    """Format a count with its noun, as in "1 seed" and "2 seeds"."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
