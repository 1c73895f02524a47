"""`ttc report`: result rows to tables and figures."""

from pathlib import Path

import click


@click.command(epilog="Example: ttc report rows.jsonl --out report")
@click.argument("rows", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--compare", metavar="METHOD", help="test the others against it [tent]")
def report(rows: tuple[Path, ...], out: Path, compare: str | None) -> None:
    """Turn result rows into tables, figures and one page, index.html, in a folder."""
    from ttc_core.report import write_report

    written = write_report(rows, out, compare=compare)
    click.echo(written.accuracy)
    for problem in written.problems:
        click.echo(problem, err=True)
    click.echo(f"Written to {out}; all of it is on {out / 'index.html'}.")
