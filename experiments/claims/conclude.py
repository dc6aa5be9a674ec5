"""Judge the claims by the rows of a sweep."""

from collections.abc import Collection, Mapping
from pathlib import Path


def conclude(out: Path, rows: Mapping[str, Collection[int]] | None = None) -> None:
    """Judge the claims by the rows in a folder: its ``claims.csv``, a picture, and a table.

    `rows`: numbers of those that count, of the experiments that were just run.
    """
    from experiments.claims import figures, statistics, tables
    from experiments.progress import print_table

    table = tables.write(out, rows)
    if table is not None:
        judged = table[table["cases"] > 0]
        title = "claims, in % with 95 % intervals; all columns are in claims.csv"
        if len(judged):
            print_table(title, tables.describe(judged))
            print(tables.NOTES)
        if len(judged) < len(table):
            print(
                f"{len(table) - len(judged)} more claims have no setting here to be judged by"
            )
        if table["best_pairs"].max() < statistics.FEW:
            print(tables.FEW_SEEDS)
        names = ("claims.csv", "claims_settings.csv")
        for path in (*(out / name for name in names), figures.save_forest(table, out)):
            print(f"  {path}")
