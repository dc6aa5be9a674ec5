"""Tables of texts as Markdown files."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd


def save_tables(
    name: str, tables: Mapping[str, pd.DataFrame], out: str | Path, notes: str = ""
) -> list[Path]:
    """Write tables of texts as ``NAME.md`` in `out`; return its path, none without a table."""
    if not tables:
        return []
    command = f"Written by `python -m experiments.sweep` from `{name}.csv`; do not edit."
    parts = [f"<!-- {command} -->", f"# {name}"]
    parts += [f"**{title}**\n\n{markdown(table)}" for title, table in tables.items()]
    parts += [notes] if notes else []
    path = Path(out) / f"{name}.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [path]


def markdown(table: pd.DataFrame) -> str:
    """Return a table of texts in Markdown, its index first; numbers stand on the right."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    rows = [
        [str(index), *map(str, cells)]
        for index, cells in zip(table.index, table.to_numpy(), strict=True)
    ]
    rule = [":--", *("--:" for _ in table.columns)]
    lines = [head, rule, *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines
    )
