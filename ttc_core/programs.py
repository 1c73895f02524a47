"""Networks out of files that hold their code, too: TorchScript and torch.export.

To open or run such a file runs what is in it (DECISIONS): who asks for one says that it is trusted.
Their layers are out of reach, so they answer and do not adapt.
"""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttc_core.errors import LoadError, told

HEAD = "logits"


class Program(nn.Module):
    """A network that is one piece; its logits count as the features that its head reads.

    Args:
        network: from (N, 3, H, W) to logits (N, K).
        file: its bytes' digest; code is not among the tensors of a state dict.
        batch: the only N that it takes; None: any.

    Attributes:
        side: pixels of the images that it takes; None: unknown, or any.
    """

    def __init__(
        self, network: nn.Module, file: bytes, *, batch: int | None = None, side: int | None = None
    ) -> None:
        super().__init__()
        self.network, self.batch, self.side = network, batch, side
        self.logits = nn.Identity()
        self.register_buffer("file", torch.frombuffer(bytearray(file), dtype=torch.uint8))
        # Where images go to and in which precision, for a program that keeps weights as constants.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def train(self, mode: bool = True) -> "Program":
        """Nothing: an exported program has one mode and raises when asked for another."""
        return self

    def forward(self, images: Tensor) -> Any:
        if self.batch is None:
            return self.logits(self.network(images))
        count = len(images)
        filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, -count % self.batch))
        answers = torch.cat([self.network(part) for part in torch.split(filled, self.batch)])
        return self.logits(answers[:count])


def open_program(kind: str, path: Path, device: torch.device) -> Program:
    """Open a file of `torch.jit.save` (kind "torchscript") or `torch.export.save` ("export").

    Whatever code is in it may run, now and with each pass.

    Raises:
        LoadError: it is missing, of another kind, or takes something else than images.
    """
    if not path.is_file():
        raise LoadError(f"There is no file {path}.")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    opener: Callable[[Path, bytes, torch.device], Program] = (
        _torchscript if kind == "torchscript" else _exported
    )
    try:
        with warnings.catch_warnings():
            for kind_of in (DeprecationWarning, FutureWarning):  # TorchScript is deprecated
                warnings.simplefilter("ignore", kind_of)
            return opener(path, digest.digest(), device)
    except (LoadError, KeyboardInterrupt):
        raise
    except BaseException as error:  # torch raises many kinds, and its code may do anything
        saver = "torch.jit.save" if kind == "torchscript" else "torch.export.save"
        raise LoadError(f"{path} is no readable file of {saver}: {told(error)}.") from None


def _torchscript(path: Path, digest: bytes, device: torch.device) -> Program:
    network = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
    return Program(network.eval(), digest)


def _exported(path: Path, digest: bytes, device: torch.device) -> Program:
    with path.open("rb") as file:  # a name that does not end in .pt2 would be warned of
        program = torch.export.load(file)
    names = program.graph_signature.user_inputs
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in names and "val" in node.meta
    ]
    if len(names) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
        raise LoadError(
            f"{path} takes {len(names)} inputs of shapes {[tuple(shape) for shape in shapes]}; "
            "expected is one, of images (N, 3, H, W)."
        )
    # What was not exported as dynamic is a number.
    batch, _, height, width = (size if isinstance(size, int) else None for size in shapes[0])
    if height != width:
        raise LoadError(
            f"{path} takes images of {width or 'any'} × {height or 'any'} pixels; square ones are "
            "served."
        )
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Program(program.module(), digest, batch=batch, side=height)
