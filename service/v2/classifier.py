"""The model that is served, as the protocol sees it: one tensor of images in, one of numbers out.

It takes UINT8 and FP32 pixels, and BYTES, which are image files; all go the way of /predict.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from service.answering import Image, ImageAnswer
from service.errors import OutOfRange, of_image
from service.intake import Submission
from service.routes.context import Service
from service.schemas import DEFAULT_STREAM, STREAM_NAME, STREAM_WORDS
from service.settings import DAY
from service.uploads import Upload, check_id, from_base64
from service.v2.datatypes import BYTES, Buffer
from service.v2.model import Inference, Statistics
from service.v2.parameters import switch
from service.v2.reading import InferenceRequest, Tensor
from service.v2.sentences import shown, told
from service.v2.signature import Input, Output, Signature
from ttc_core.methods import HostPrediction

IMAGES = "images"
# In the order of the sides of a batch: where rows, columns and channels are.
_LAYOUTS = {"NHWC": (1, 2, 3), "NCHW": (2, 3, 1)}
# The brightest value of FP32, by the parameter `scale`.
_SCALES = {1: 1.0, 255: 255.0, "1": 1.0, "255": 255.0}
# Paths of the routes where a model's name would stand.
_TAKEN = ("", "stats")

_OUTPUTS: dict[str, Callable[[ImageAnswer], Any]] = {
    "probabilities": lambda one: one.answers.probabilities[one.row],
    "logits": lambda one: one.answers.logits[one.row],
    "entropy": lambda one: one.answers.entropy[one.row] + 0.0,  # of one sure class it is -0.0
    "version": lambda one: one.answers.version,
}


def name_of(spec: str) -> str:
    """A model's name in paths: `resnet50` of torchvision/resnet50@FILE, `factory` of a module's."""
    without_file = re.split(r"[@?]", spec)[0]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", re.split(r"[/:]", without_file)[-1])
    return f"model-{name}" if name in _TAKEN else name


class Classifier:
    """The service's model.

    Attributes:
        statistics: of the requests that it answered by this protocol.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.statistics = Statistics()
        # What was counted as a pass; by identity, as long as somebody else remembers it.
        self._counted: WeakValueDictionary[int, HostPrediction] = WeakValueDictionary()

    @property
    def is_ready(self) -> bool:
        return self._service.is_ready

    @property
    def signature(self) -> Signature:
        model, settings = self._service.source.model, self._service.settings
        side, classes = model.crop or model.size or model.trial_side, model.classes
        pixels = ((-1, -1, -1, 3), (-1, 3, -1, -1))
        return Signature(
            name=name_of(settings.model),
            platform="pytorch",
            inputs=[
                Input(
                    IMAGES,
                    "UINT8",
                    (-1, side, side, 3),
                    also={"UINT8": pixels, "FP32": pixels, BYTES: ((-1,), (-1, 1))},
                    options=("format", "scale"),
                    format="FORMAT_NHWC",
                    raw=BYTES,
                    parameters={
                        "datatypes": "UINT8, FP32, BYTES",
                        "format": "NHWC or NCHW, by the shape; a parameter where both fit",
                        "scale": "FP32 is in [0, 1]; with the parameter scale 255 in [0, 255]",
                        "size": "any within the limits of the server; resized as files are",
                        "bytes": "image files (JPEG, PNG, WebP, GIF, BMP); base64 in JSON",
                    },
                )
            ],
            outputs=[Output("probabilities", "FP32", (-1, classes), model.class_names)],
            more=[
                Output("logits", "FP32", (-1, classes), model.class_names),
                Output("label", BYTES, (-1,)),
                Output("entropy", "FP32", (-1,)),
                Output("version", "INT64", (-1,)),
            ],
            options=("stream", "learn", "context"),
            max_batch=min(settings.max_images, settings.max_queue),
            parameters={
                "more_outputs": "label, entropy (nats), logits, version (optimizer steps): where "
                "they are asked for by name",
                "stream": "sequence_id, or the parameter stream, is the stream that adapts",
                "ignored": "priority, sequence_start, sequence_end",
            },
        )

    async def infer(self, request: InferenceRequest, submission: Submission) -> Inference:
        """Answer images; they teach their stream unless the parameter `learn` is false."""
        parameters = request.parameters
        learn, context = (switch(parameters, name, usual=True) for name in ("learn", "context"))
        timeout = None if request.timeout is None else min(request.timeout, DAY)
        submission.name(self._stream(request), timeout=timeout, learn=learn)
        images = await self._images(request, submission)
        if not (learn and context):
            images = [replace(each, context=context, learn=learn) for each in images]
        answered = await submission.answer(images)
        names = self._service.source.model.class_names
        outputs = {
            wanted.name: self._output(wanted.name, answered.answers, names)
            for wanted in request.outputs
        }
        return Inference(
            outputs,
            answered.seconds,
            self._passes(answered.answers),
            {"probabilities": lambda row, count: answered.answers[row].best(count)},
        )

    def _stream(self, request: InferenceRequest) -> str:
        named = request.parameters.get("stream")
        if named is not None and not (isinstance(named, str) and STREAM_NAME.fullmatch(named)):
            raise OutOfRange(f"stream: {STREAM_WORDS}; got {told(named)}.")
        names = {name for name in (request.sequence, named) if name}
        if len(names) > 1:
            raise OutOfRange(
                "sequence_id (or the query, or X-Session-Id) and the parameter stream name two "
                "streams; at most one is accepted."
            )
        return names.pop() if names else DEFAULT_STREAM

    async def _images(self, request: InferenceRequest, submission: Submission) -> Sequence[Image]:
        ids = _ids(request.id, request.batch)
        if request.inputs[IMAGES].datatype == BYTES:
            return await submission.decode(
                partial(_files, request.inputs, ids), partial(_memory_of_files, request.inputs)
            )
        tensor = request.inputs.pop(IMAGES)  # what it came in needs no memory behind this
        layout = _layout(request, tensor)
        rows, columns, _ = (tensor.shape[side] for side in layout)
        if not rows * columns:
            raise OutOfRange(f"Images of shape {shown(tensor.shape)} have no pixels.")
        most = _scale(request, tensor) if tensor.datatype == "FP32" else None
        axes = tuple(side - 1 for side in layout)

        def frame(index: int) -> NDArray[np.uint8]:
            return _pixels(tensor.values[index].transpose(axes), most)

        return await submission.fit(frame, (rows, columns), ids)

    def _output(
        self, name: str, answers: Sequence[ImageAnswer], names: Sequence[str]
    ) -> NDArray[Any]:
        if name == "label":
            labels = [names[int(one.answers.predicted[one.row])].encode() for one in answers]
            return np.array(labels, object)
        kind = np.int64 if name == "version" else np.float32
        return np.array([_OUTPUTS[name](one) for one in answers], kind)

    def _passes(self, answers: Sequence[ImageAnswer]) -> int:
        """How many passes no request before has told of."""
        new = 0
        for each in {id(one.answers): one.answers for one in answers}.values():
            if self._counted.get(id(each)) is not each:
                self._counted[id(each)] = each
                new += 1
        return new


def _ids(request_id: str | None, count: int) -> list[str | None]:
    """What later labels name the images by: the request's id; of several with /0, /1, … behind."""
    if not request_id:
        return [None] * count
    if count == 1:
        check_id(request_id, "The request's id, which is its image's,")
        return [request_id]
    ids = [f"{request_id}/{index}" for index in range(count)]
    check_id(ids[-1], "The request's id with /0, /1, … behind it, an image's each,")
    return list(ids)


def _memory_of_files(inputs: Mapping[str, Tensor], _body: Buffer) -> int:
    """The bytes that `_files` takes: of the files, and of base64 as text. A body is one itself."""
    tensor = inputs[IMAGES]
    if tensor.binary:
        return sum(len(each) for each in tensor.values.flat if isinstance(each, memoryview))
    sizes = [len(each) for each in tensor.values.flat]
    return sum(sizes) + max(sizes, default=0)


def _files(inputs: dict[str, Tensor], ids: list[str | None], _body: Buffer) -> Upload:
    """The image files of a request, which loses them: the body has no other use then.

    Runs in a thread.
    """
    tensor, files = inputs.pop(IMAGES), list[Buffer]()
    for index, file in enumerate(tensor.values.flat):
        if isinstance(file, memoryview):
            files.append(bytes(file))
        elif tensor.binary:  # the whole body
            files.append(file)
        else:
            with of_image(index, tensor.values.size):
                files.append(from_base64(file.decode("latin-1"), "a file in JSON"))
    return Upload(files, ids)


def _layout(request: InferenceRequest, tensor: Tensor) -> tuple[int, int, int]:
    asked = tensor.parameters.get("format", request.parameters.get("format"))
    if asked is not None and (not isinstance(asked, str) or asked not in _LAYOUTS):
        raise OutOfRange(f"The parameter format is NHWC or NCHW; got {told(asked)}.")
    fitting = [name for name, sides in _LAYOUTS.items() if tensor.shape[sides[2]] == 3]
    if asked is None and len(fitting) > 1:
        raise OutOfRange(
            f"Images of shape {shown(tensor.shape)} may be NHWC and NCHW; the parameter "
            "format says which."
        )
    if asked is not None and asked not in fitting:
        raise OutOfRange(f"Images of shape {shown(tensor.shape)} have not 3 channels as {asked}.")
    return _LAYOUTS[str(asked or fitting[0])]


def _scale(request: InferenceRequest, tensor: Tensor) -> float:
    """The brightest value that FP32 has."""
    asked = tensor.parameters.get("scale", request.parameters.get("scale"))
    if asked is None:
        return 1.0
    if type(asked) not in (int, float, str) or asked not in _SCALES:
        raise OutOfRange(f"The parameter scale is 1 or 255; got {told(asked)}.")
    return _SCALES[asked]


def _pixels(values: NDArray[Any], most: float | None) -> NDArray[np.uint8]:
    """An image (H, W, 3) of its own, in C order; FP32 to the nearest of 256 levels."""
    if most is None:
        return np.array(values, np.uint8, order="C")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= most):  # NaN is neither
        other = " With the parameter scale 255 it is [0, 255]." if most == 1 else ""
        raise OutOfRange(
            f"its values are {low:g} to {high:g}; accepted are finite numbers from 0 to {most:g}."
            + other
        )
    return np.rint(values * np.float32(255 / most)).astype(np.uint8, order="C")
