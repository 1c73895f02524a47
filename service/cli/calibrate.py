"""`ttc calibrate`: how sure a model is of images that it was not trained on, kept beside it."""

import re
from pathlib import Path

import click

from service.cli.options import (
    BATCH_SIZE,
    COUNT,
    FILE,
    NetworkOptions,
    check_writable,
    grouped,
)


@click.command(epilog="Example: ttc calibrate cifar/resnet20@resnet20.th folder:held-out")
@click.argument("model")
@click.argument("data")
@click.option(
    "--out",
    type=FILE,
    help="[the weight file's name and .calibration.json; without one the model's, here]",
)
@click.option("--batch-size", type=COUNT, default=BATCH_SIZE, show_default=True, help="images")
@grouped("network", NetworkOptions)
def calibrate(
    model: str, data: str, out: Path | None, batch_size: int, network: NetworkOptions
) -> None:
    """Write the calibration record of MODEL: how sure and how right it is of DATA, labelled images
    of the kind that it was trained for, and was not trained on. `ttc serve` and `ttc evaluate` find
    it beside the weights, or take it by --calibration."""
    import torch

    from ttc_core.calibration_record import SUFFIX, CalibrationRecord, measured
    from ttc_core.datasets import check_there, open_data
    from ttc_core.evaluate import as_batch
    from ttc_core.load import record_beside

    if network.threads:
        torch.set_num_threads(network.threads)
    beside = record_beside(model) if "@" in model else None
    path = out or beside or Path(re.sub(r"[^\w.-]+", "_", model) + SUFFIX)
    check_writable(path, None)
    check_there(data)
    source = network.load(model)
    stream = open_data(data, source.geometry, source.class_names).open("clean", 5)
    logits, labels = measured(
        source,
        (
            (as_batch(images), torch.from_numpy(given))
            for images, given in stream.batches(batch_size)
        ),
    )
    record = CalibrationRecord.of(
        logits,
        labels,
        model=model,
        model_digest=source.digest,
        data=data,
        data_digest=stream.digest,
    )
    record.write(path)
    found = path == beside
    click.echo(
        f"{record.images:,} images: {record.accuracy:.1%} right, {record.confidence:.1%} sure; "
        f"temperature {record.temperature:.3g}. Wrote {path}"
        + (", where the model finds it." if found else f"; name it with --calibration {path}.")
    )
