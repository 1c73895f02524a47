"""LitServe, as https://lightning.ai/docs/litserve/features/batching has it: batches, one worker."""

from typing import Annotated

import litserve
from fastapi import Body
from torch import Tensor

from benchmarks.peers.model import Answer, Asked, Classifier


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier(Asked.read())

    def decode_request(self, request: Annotated[bytes, Body()]) -> Tensor:
        return self.classifier.decode(request)

    def batch(self, inputs: list[Tensor]) -> list[Tensor]:
        return inputs

    def predict(self, inputs: list[Tensor]) -> list[Answer]:
        return self.classifier.classify(inputs)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer) -> Answer:
        return output


if __name__ == "__main__":
    asked = Asked.read()
    api = Api(max_batch_size=asked.max_batch, batch_timeout=asked.max_wait)
    server = litserve.LitServer(api, accelerator="auto", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=asked.port, generate_client_file=False, log_level="warning")
