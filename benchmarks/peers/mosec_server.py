"""mosec, as its examples of images have it: stages of their own for decoding and for the network.

https://mosecorg.github.io/mosec/examples/pytorch.html
"""

import os
import sys
from dataclasses import replace

import torch
from mosec import Server, Worker
from numpy.typing import NDArray

from benchmarks.peers.model import Answer, Asked, Classifier

asked = Asked.read()


class Decode(Worker):
    def __init__(self) -> None:
        self.classifier = Classifier(replace(asked, threads=1))

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> NDArray:
        return self.classifier.decode(data).numpy()


class Classify(Worker):
    def __init__(self) -> None:
        self.classifier = Classifier(asked)

    def forward(self, data: list[NDArray]) -> list[Answer]:
        return self.classifier.classify([torch.from_numpy(each) for each in data])


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(asked.port), "--timeout", "60000"]
    sys.argv += ["--log-level", "warning"]
    server = Server()
    server.append_worker(Decode, num=os.cpu_count() or 1, route="/predict")
    server.append_worker(
        Classify,
        num=1,
        max_batch_size=asked.max_batch,
        max_wait_time=max(1, round(1000 * asked.max_wait)),
        route="/predict",
    )
    server.run()
