"""What all the servers share: the network, how a body becomes its input, and the answer.

`ttc serve --model benchmarks.peers.model:resnet50` serves the same one.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import transforms

from ttc_core.load import load
from ttc_core.model import SourceModel

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECS = {"resnet20": "bundled", "resnet50": "benchmarks.peers.model:resnet50"}
"""The name of a network in the comparison -> its model spec."""


Answer = dict[str, int | float]
"""What each server answers about an image, as JSON: class and confidence."""


@dataclass(frozen=True)
class Asked:
    """What the comparison asks of a server, through its environment.

    Attributes:
        model: resnet20 or resnet50.
        port: on 127.0.0.1.
        max_batch: images.
        max_wait: seconds that the first image of a batch waits for others.
        threads: of torch.
    """

    model: str
    port: int
    max_batch: int
    max_wait: float
    threads: int

    @classmethod
    def read(cls) -> "Asked":
        """As `environment` has written it; what is missing is as in the comparison."""
        given = {name.removeprefix("PEER_").lower(): text for name, text in os.environ.items()}
        return cls(
            model=given.get("model", "resnet20"),
            port=int(given.get("port", 8000)),
            max_batch=int(given.get("max_batch", 32)),
            max_wait=float(given.get("max_wait", 0.005)),
            threads=int(given.get("threads", os.cpu_count() or 1)),
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `read` reads."""
        return {f"PEER_{name.upper()}": str(value) for name, value in vars(self).items()}


def resnet50() -> SourceModel:
    """torchvision's ResNet-50 with weights drawn from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet50(weights=None)
    return SourceModel(network, mean=MEAN, std=STD, size=256, crop=224)


class Classifier:
    """The frozen network, its bodies and its answers."""

    def __init__(self, asked: Asked) -> None:
        torch.set_num_threads(asked.threads)
        source = load(SPECS[asked.model])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = source.module.to(self.device)
        assert source.size is not None
        mode = transforms.InterpolationMode(source.interpolation)
        sizes = (
            [transforms.Resize(source.size, mode), transforms.CenterCrop(source.crop)]
            if source.crop
            else [transforms.Resize((source.size, source.size), mode)]
        )
        self.transform = transforms.Compose(
            [*sizes, transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
        )

    def decode(self, body: bytes) -> Tensor:
        """A JPEG file -> the network's input (3, H, W), float32."""
        return self.prepare(Image.open(io.BytesIO(body)))

    def prepare(self, image: Image.Image) -> Tensor:
        """A picture -> the network's input (3, H, W), float32."""
        inputs: Tensor = self.transform(image.convert("RGB"))
        return inputs

    @torch.inference_mode()
    def classify(self, inputs: Sequence[Tensor]) -> list[Answer]:
        """Inputs (3, H, W) -> an answer for each, from one pass."""
        logits = self.network(torch.stack(list(inputs)).to(self.device))
        confidences, labels = logits.softmax(dim=1).max(dim=1)
        return [
            {"class": label, "confidence": confidence}
            for label, confidence in zip(labels.tolist(), confidences.tolist(), strict=True)
        ]
