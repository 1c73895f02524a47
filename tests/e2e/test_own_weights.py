"""A network of one's own, by name and file: `ttc serve` with one line, and its answers."""

import io
import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

from service.cli.serve import load_source
from service.client import Client
from service.launch import LaunchError
from service.settings import Settings
from tests.fixtures.forked import launch

NAMES = ("cat", "dog", "guinea pig")
OPTIONS = ("--device", "cpu", "--threads", "1")
WAYS = {
    "state-dict": lambda network, path: torch.save(network.state_dict(), path),
    "training": lambda network, path: torch.save({"state_dict": network.state_dict()}, path),
    "parallel": lambda network, path: torch.save(nn.DataParallel(network).state_dict(), path),
    "safetensors": lambda network, path: save_file(network.state_dict(), path),
    "lightning": lambda network, path: torch.save(
        {
            "pytorch-lightning_version": "2.5.0",
            "hyper_parameters": {"lr": 0.1},
            "state_dict": {f"model.{name}": t for name, t in network.state_dict().items()},
        },
        path,
    ),
}


@pytest.fixture(scope="module")
def network():
    """A ResNet-18 of three classes, as one that was fine-tuned."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=3).eval()


@pytest.fixture(scope="module")
def photographs():
    """Two photographs as PNG files, and as torchvision's weights prepare them."""
    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    prepare = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    files = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, "PNG")
        files.append(file.getvalue())
    return files, torch.stack([prepare(picture) for picture in pictures])


def names_of(folder):
    """The flag that names the classes, as ImageFolder has them in its class_to_idx."""
    (folder / "names.json").write_text(json.dumps({name: n for n, name in enumerate(NAMES)}))
    return "--class-names", str(folder / "names.json")


@pytest.mark.parametrize("way", list(WAYS))
def test_a_fine_tuned_network_is_served_however_it_was_saved(
    way, serve, network, photographs, tmp_path
):
    """To a photograph as it was taken it answers as where it was trained."""
    WAYS[way](network, tmp_path / "weights.pt")
    options = {
        "model": f"torchvision/resnet18@{tmp_path}/weights.pt",
        "class_names": names_of(tmp_path)[1],
        "device": "cpu",
        "method": "source",
    }
    files, inputs = photographs
    with torch.no_grad():
        wanted = network(inputs).softmax(dim=1).numpy()
    source = load_source(Settings(**options, threads=1))
    with serve(source=source, **options) as running, Client(running.url) as client:
        answers = client.predict(files, top_k=3)
    for answer, probabilities in zip(answers.predictions, wanted, strict=True):
        found = {each.name: each.confidence for each in answer.top_k}
        np.testing.assert_allclose([found[name] for name in NAMES], probabilities, atol=1e-4)


def test_one_line_serves_and_adapts_it(network, photographs, tmp_path):
    """The default method, and what the server says of the model's input."""
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = ("--model", f"torchvision/resnet18@{tmp_path}/weights.pt", *names_of(tmp_path))
    with launch(*model, *OPTIONS) as server, Client(server.url) as client:
        status = client.status()
        assert (status.method, tuple(status.model.class_names)) == ("ttc_stream", NAMES)
        shown = (status.model.size, status.model.crop, status.model.interpolation)
        assert shown == (256, 224, "bilinear")
        assert status.model.adapted_parameters == 9600
        answers = client.predict(photographs[0], top_k=3)
    assert {each.name for each in answers.predictions[0].top_k} == set(NAMES)
    (said,) = (line for line in server.lines if "Input: " in line)
    assert "a shorter side of 256 (bilinear), the middle 224 × 224" in said
    assert "torchvision's ResNet18_Weights.IMAGENET1K_V1" in said
    assert said.endswith("names.json")


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # it is deprecated
def test_a_program_is_served_frozen_when_it_is_trusted(network, photographs, tmp_path):
    """By SOURCE where no method is named; one that adapts, and no trust, are sentences."""
    example = torch.randn(1, 3, 224, 224)
    torch.jit.save(torch.jit.trace(network, example), tmp_path / "model.pt")
    spec = ("--model", f"torchscript@{tmp_path}/model.pt", *OPTIONS)
    size = ("--size", "256", "--crop", "224")
    with launch(*spec, *size, "--trust-code") as server, Client(server.url) as client:
        assert client.status().method == "source"
        assert client.predict(photographs[0]).predictions[0].name in {"0", "1", "2"}
    assert any("served frozen, by the method source" in line for line in server.lines)
    adapting = launch(*spec, *size, "--trust-code", "--method", "ttc")
    with pytest.raises(LaunchError, match="ttc cannot adapt a TorchScript"), adapting:
        pass
    with pytest.raises(LaunchError, match="say --trust-code"), launch(*spec, *size):
        pass


def test_a_model_is_evaluated_with_the_input_that_is_said(ttc, tmp_path, monkeypatch):
    """`ttc evaluate` and `ttc calibrate` take the same flags; a record lies beside the weights."""
    monkeypatch.chdir(tmp_path)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=2)
    torch.save(network.state_dict(), "weights.pt")
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(60):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    spec = "torchvision/shufflenet_v2_x0_5@weights.pt"
    (tmp_path / "names.txt").write_text("b\na\n")
    said = ("--size", 40, "--crop", 32, "--interpolation", "bicubic", "--class-names", "names.txt")
    status, out, errors = ttc("calibrate", spec, "folder:data", *said)
    assert status == 0, errors
    assert "where the model finds it" in out
    asked = ("evaluate", "folder:data", "--model", spec, "--corruptions", "clean")
    asked = (*asked, "--methods", "ttc_stream", "--json", "rows.jsonl")
    status, _, errors = ttc(*asked, *said)
    assert status == 0, errors
    status, _, errors = ttc(*asked, *said[:4], *said[6:])
    assert status == 0, errors
    assert "is of other weights or another preprocessing" in errors
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (first["calibrated"], second["calibrated"]) == ("record", "none")
    status, _, errors = ttc(*asked, "--interpolation", "cubic")
    assert (status, "bicubic" in errors) == (2, True)
