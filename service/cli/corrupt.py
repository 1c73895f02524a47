"""`ttc corrupt`: the fifteen corruptions, on files."""

from pathlib import Path

import click

from service.cli.options import SEED


@click.command(epilog="Example: ttc corrupt photos foggy --corruption fog --severity 3")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--corruption", required=True, help="one of the fifteen, as fog")
@click.option("--severity", type=click.IntRange(1, 5), required=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
def corrupt(source: Path, target: Path, corruption: str, severity: int, seed: int) -> None:
    """Corrupt an image, a folder of images or an .npy of (N, H, W, 3) images."""
    from ttc_core.corruptions import CORRUPTIONS
    from ttc_core.corruptions.files import corrupt_path

    if corruption not in ("clean", *CORRUPTIONS):
        raise click.UsageError(
            f"There is no corruption {corruption!r}; there are clean, {', '.join(CORRUPTIONS)}."
        )
    try:
        count = corrupt_path(source, target, corruption, severity, seed)
    except OSError as error:  # with a reason of the system's it is the writing that failed
        said = f"{target} cannot be written: {error.strerror}." if error.strerror else str(error)
        raise click.ClickException(said) from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    images = "image" if count == 1 else "images"
    click.echo(f"{count:,} {images} with {corruption} at severity {severity} written to {target}.")
