"""Judge the claims by the rows of a sweep."""

from collections.abc import Collection, Mapping
from pathlib import Path


def conclude(out: Path, rows: Mapping[str, Collection[int]] | None = None) -> None:
    """Judge the claims by the rows in a folder: write the tables, and a figure per topic.

    Parameters
    ----------
    out : Path
    rows : mapping, optional
        Numbers of the rows that count, for the experiments that were just run.
    """
    from experiments.claims import claim_figures, statistics, tables
    from experiments.markdown import save_tables
    from experiments.progress import print_table

    table = tables.write(out, rows)
    frame = tables.load_all(out, rows)
    if table is None or frame is None:
        return
    judged = table[table["cases"] > 0]
    written = [out / "claims.csv", out / "claims_settings.csv"]
    if len(judged):
        title = "claims, in % with 95 % intervals; all columns are in claims.csv"
        texts = tables.describe(judged)
        print_table(title, texts)
        print(tables.NOTES)
        written += save_tables("claims", {title: texts}, out, tables.NOTES)
    if len(judged) < len(table):
        print(f"{len(table) - len(judged)} more claims have no setting here that decides them")
    if table["best_pairs"].max() < statistics.FEW:
        print(tables.FEW_SEEDS)
    for path in (*written, *claim_figures.save(frame, out)):
        print(f"  {path}")
