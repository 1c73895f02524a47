"""`ttc report`: result rows to tables and figures."""

from pathlib import Path

import click


@click.command(epilog="Example: ttc report rows.jsonl --out report")
@click.argument("rows", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def report(rows: tuple[Path, ...], out: Path) -> None:
    """Turn result rows into tables: Markdown and CSV in a folder."""
    from ttc_core.report.tables import accuracy_tables
    from ttc_core.rows import read_rows

    try:
        tables = accuracy_tables(row for path in rows for row in read_rows(path))
    except (ValueError, KeyError, OSError) as error:
        raise click.ClickException(f"The rows cannot be read: {error}") from error
    if not tables:
        raise click.ClickException(f"There are no rows in {', '.join(map(str, rows))}.")
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(table.markdown() for table in tables)
    (out / "accuracy.md").write_text(text)
    for number, table in enumerate(tables, start=1):
        (out / f"accuracy-{number}.csv").write_text(table.csv())
    click.echo(text)
    click.echo(f"Written to {out}.")
