"""The recipe behind the bundled model runs and writes files that load."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch

from ttc_core.checkpoint import read_checkpoint
from ttc_core.errors import UserError
from ttc_core.load import load
from ttc_core.zoo import fashion_mnist
from ttc_core.zoo.resnet import ResNet
from ttc_core.zoo.train import fit, mirrored, shifted, train

installed = pytest.mark.skipif(
    not fashion_mnist.DIRECTORY.is_dir(),
    reason=f"Debian's dataset-fashion-mnist is not at {fashion_mnist.DIRECTORY}",
)


@installed
@pytest.mark.slow
def test_the_recipe_writes_weights_and_stream(tmp_path: Path):
    """One epoch over 256 pictures: a learned network, a complete header, 2,000 test pictures."""
    sentences: list[str] = []
    accuracy = train(tmp_path / "out", epochs=1, limit=256, report=sentences.append)
    assert 0 <= accuracy <= 1
    assert len(sentences) == 2
    assert sentences[0].startswith("epoch 1/1: loss ")
    with safetensors.safe_open(tmp_path / "out" / "weights.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["architecture"] == "resnet20"
    assert float(header["accuracy"]) == pytest.approx(accuracy, abs=1e-4)
    assert json.loads(header["class_names"]) == list(fashion_mnist.CLASSES)
    assert 0.1 < json.loads(header["mean"])[0] < 0.5
    assert (header["size"], "1 epochs" in header["trained"]) == ("32", True)
    own, bundled = (
        read_checkpoint(tmp_path / "out" / "weights.safetensors").sets[""],
        load("bundled").module.state_dict(),
    )
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in bundled.items()}
    assert all(np.isfinite(tensor.numpy()).all() for tensor in own.values())
    assert int(own["bn1.num_batches_tracked"]) == 2
    with np.load(tmp_path / "out" / "stream.npz") as stream:
        assert stream["pictures"].shape == (2000, 28, 28)
        assert stream["pictures"].dtype == stream["labels"].dtype == np.uint8


def test_training_goes_on_where_it_was_stopped(tmp_path: Path):
    """After the last whole epoch, to the very weights of a run that was not stopped."""
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=torch.manual_seed(0)).byte()

    def run(
        progress: Path | None = None, stop: bool = False, epochs: int = 3
    ) -> dict[str, torch.Tensor]:
        def report(sentence: str) -> None:
            assert not (stop and sentence.startswith("epoch 2/"))

        torch.manual_seed(1)
        network = ResNet(1)
        fit(
            network,
            images,
            torch.arange(24) % 10,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            augment=lambda batch: shifted(mirrored(batch)),
            epochs=epochs,
            batch_size=8,
            lr=0.1,
            report=report,
            progress=progress,
        )
        return network.state_dict()

    whole = run()
    with pytest.raises(AssertionError):
        run(tmp_path / "progress", stop=True)
    resumed = run(tmp_path / "progress")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    with pytest.raises(UserError, match="is of a run of 9 steps, not 12"):
        run(tmp_path / "progress", epochs=4)


def test_a_missing_data_set_is_named(tmp_path: Path):
    """With the package that installs it."""
    with pytest.raises(UserError, match=r"train-images.*dataset-fashion-mnist"):
        train(tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()


def test_pictures_become_what_the_model_takes():
    """28 pixels of grey to 32 of RGB, as the server resizes."""
    picture = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28)
    rgb = fashion_mnist.to_rgb(picture)
    assert rgb.shape == (1, 32, 32, 3)
    assert (rgb[..., 0] == rgb[..., 1]).all()
