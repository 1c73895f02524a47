"""Files of TorchScript and torch.export: opened when trusted, served frozen, and nothing else."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.fixtures.networks import CLASSES, MEAN, SIZE, STD, make_images, make_network
from ttc_core.errors import LoadError
from ttc_core.load import load
from ttc_core.methods import METHODS, UnsuitableNetworkError, create
from ttc_core.model import SourceModel

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit")  # TorchScript is deprecated


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(make_network("batch-norm")), path)


def traced(path: Path) -> None:
    torch.jit.save(torch.jit.trace(make_network("batch-norm"), torch.randn(2, 3, SIZE, SIZE)), path)


def frozen(path: Path) -> None:
    """Its weights are constants: it has no parameters."""
    torch.jit.save(torch.jit.freeze(torch.jit.script(make_network("batch-norm"))), path)


def exported(path: Path, batch: int | None = None) -> None:
    dynamic = None if batch else ({0: Dim("batch")},)
    example = torch.randn(batch or 2, 3, SIZE, SIZE)
    torch.export.save(
        torch.export.export(make_network("batch-norm"), (example,), dynamic_shapes=dynamic), path
    )


FILES = {
    "torchscript@scripted.pt": scripted,
    "torchscript@traced.pt": traced,
    "torchscript@frozen.pt": frozen,
    "export@dynamic.pt2": exported,
    "export@one.pt2": lambda path: exported(path, 1),
    "export@three.bin": lambda path: exported(path, 3),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(folder):
    """Write one of the files and load it."""

    def load_it(spec: str) -> SourceModel:
        FILES[spec](folder / spec.partition("@")[2])
        return load(spec, mean=MEAN, std=STD, size=SIZE, trust_code=True)

    return load_it


@pytest.mark.parametrize("spec", list(FILES))
def test_a_program_answers_as_the_network_it_was_made_of(spec, opened):
    """Any number of images, also where it was exported for another; and the input is as said."""
    model = opened(spec)
    network = SourceModel(make_network("batch-norm"), mean=MEAN, std=STD, size=SIZE)
    images = make_images(7)
    answers = create("source", model).predict(images).logits
    torch.testing.assert_close(answers, create("source", network).predict(images).logits)
    assert (model.classes, model.size, model.affine) == (CLASSES, SIZE, {})
    assert model.takes_one
    assert "served frozen" in model.notices[0]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "source"])
def test_no_method_adapts_a_program(method, opened):
    """Each but SOURCE is refused with a sentence that names it."""
    model = opened("torchscript@scripted.pt")
    with pytest.raises(UnsuitableNetworkError, match=rf"{method} cannot adapt .* source"):
        create(method, model)


def test_the_size_of_an_exported_program_is_the_files(opened, folder):
    """Where it was not exported as dynamic; of TorchScript it is found by trying."""
    opened("export@one.pt2")
    assert load("export@one.pt2", trust_code=True).size == SIZE
    opened("torchscript@scripted.pt")
    model = load("torchscript@scripted.pt", trust_code=True)
    assert model.size is None
    assert any("no mean and deviation are stated" in said for said in model.notices)


@pytest.mark.parametrize(
    ("said", "missing"), [({"mean": MEAN}, "without --std"), ({"std": STD}, "without --mean")]
)
def test_half_of_a_normalisation_is_told(said, missing, opened):
    """The other half is none, which is seldom meant; with both nothing is said of it."""
    model = opened("torchscript@scripted.pt")
    assert not any("--std" in notice for notice in model.notices)
    model = load("torchscript@scripted.pt", **said, size=SIZE, trust_code=True)
    assert sum(missing in notice for notice in model.notices) == 1


def test_other_code_is_another_model(opened, folder):
    """The digest is of the file: of a frozen program no weight is in a state dict."""
    first = opened("torchscript@frozen.pt").digest
    said = {"mean": MEAN, "std": STD, "size": SIZE}
    assert load("torchscript@frozen.pt", **said, trust_code=True).digest == first
    network = make_network("batch-norm")
    network.head.bias.data.add_(1)
    torch.jit.save(torch.jit.freeze(torch.jit.script(network)), folder / "frozen.pt")
    assert load("torchscript@frozen.pt", **said, trust_code=True).digest != first


class Writer(nn.Module):
    """A scripted network that makes a file when it is asked, with an operation of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        mark = torch.from_file("written", True, 4, dtype=torch.uint8)
        return self.head(images.mean([2, 3]) + mark.sum())


class Trap:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("written",)


def hostile_export(path: Path) -> None:
    """An exported program whose example inputs are a pickle of something else."""
    exported(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (inputs,) = (name for name in content if "sample_inputs" in name)
    torch.save(Trap(), "inputs")
    content[inputs] = Path("inputs").read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_code_in_a_file_runs_only_where_it_is_trusted(kind, folder):
    """Both kinds can do what the user can: not opened unasked, under any spec."""
    path = folder / "model.pt"
    if kind == "torchscript":
        torch.jit.save(torch.jit.script(Writer()), path)
    else:
        hostile_export(path)
    for spec in (f"{kind}@model.pt", "torchvision/resnet18@model.pt"):
        with pytest.raises(LoadError, match=r"--trust-code|wrote it"):
            load(spec)
    assert not (folder / "written").exists()
    try:
        load(f"{kind}@model.pt", size=SIZE, trust_code=True)
    except LoadError:
        assert kind == "export"
    assert (folder / "written").exists(), "the file would do nothing in any case"


@pytest.mark.parametrize(
    ("spec", "write", "sentence"),
    [
        ("torchscript@none.pt", lambda path: None, "There is no file none.pt"),
        ("export@none.pt2", lambda path: None, "There is no file none.pt2"),
        (
            "torchscript@a.pt",
            lambda path: torch.save(make_network("batch-norm").state_dict(), path),
            "a.pt is no readable file of torch.jit.save",
        ),
        ("torchscript@a.pt", lambda path: path.write_bytes(b"x" * 99), "is no readable file"),
        ("export@a.pt2", lambda path: path.write_bytes(b"x" * 99), "is no readable file"),
        ("export@a.pt2", traced, "a.pt2 is no readable file of torch.export.save"),
    ],
)
def test_what_is_no_program_is_a_sentence(spec, write, sentence, folder):
    write(folder / spec.partition("@")[2])
    with pytest.raises(LoadError, match=sentence) as error:
        load(spec, trust_code=True)
    assert len(str(error.value)) < 700


def test_an_exported_program_of_other_inputs_is_refused(folder):
    """Images that are not square, two inputs, no images: a sentence each."""
    wide = torch.export.export(make_network("batch-norm"), (torch.randn(1, 3, 8, 16),))
    torch.export.save(wide, folder / "wide.pt2")
    with pytest.raises(LoadError, match=r"takes images of 16 × 8 pixels; square ones"):
        load("export@wide.pt2", trust_code=True)
    flat = torch.export.export(nn.Linear(4, 3), (torch.randn(2, 4),))
    torch.export.save(flat, folder / "flat.pt2")
    with pytest.raises(LoadError, match=r"takes 1 inputs of shapes \[\(2, 4\)\]; expected is one"):
        load("export@flat.pt2", trust_code=True)
