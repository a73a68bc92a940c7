"""Tables for people, in Markdown, and what stands in them."""

from collections.abc import Mapping, Sequence


def markdown_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of words with the same columns, at least one, as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number_cell(value: float | None, digits: int, error: float | None = None) -> str:
    """A number with so many digits behind the point, and its standard error if there is one; – for None."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def counted(number: int, name: str) -> str:
    """How many there are, as "1 seed" and "2 seeds"."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
