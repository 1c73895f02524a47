"""BentoML, as https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html has it.

A batchable method takes a list of pictures: a form of one file. It has no waiting time of its own:
how long it gathers follows from `max_latency_ms`, which stays as it is documented.
"""

import bentoml
from PIL.Image import Image

from benchmarks.peers.model import Answer, Asked, Classifier

asked = Asked.read()


@bentoml.service(workers=1, traffic={"timeout": 60})
class Peer:
    def __init__(self) -> None:
        self.classifier = Classifier(asked)

    @bentoml.api(batchable=True, max_batch_size=asked.max_batch)
    def predict(self, images: list[Image]) -> list[Answer]:
        return self.classifier.classify([self.classifier.prepare(image) for image in images])
