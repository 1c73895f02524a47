"""The source model: a frozen network f = h∘g with its preprocessing and class names.

It is shared by every stream and never written to: a method runs it with affine parameters and
normalisation statistics of its own. Knows nothing of methods or files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from ttc_core.calibration_record import CalibrationRecord
from ttc_core.errors import ModelError
from ttc_core.flat import Layout, tensor_bytes
from ttc_core.fused import fused
from ttc_core.geometry import Geometry
from ttc_core.interpolation import Interpolation
from ttc_core.normalization import Look, affine_parameters, batch_norm_layers, source_look, wide
from ttc_core.running import Output, Runner, note_features, pooled
from ttc_core.shared_passes import WantedPass, may_share
from ttc_core.together import answered
from ttc_core.trial import Trial, precisions

# Of a preprocessing for values in [0, 1]: beyond, pixels overflow.
MOST = 1_000_000
Precision = Literal["float32", "bfloat16"]
MAKER = "whoever made the model"


@dataclass(frozen=True)
class Origins:
    """Where what is not in a model's weights comes from, in words to show: "--size", say.

    Attributes:
        geometry: of size and crop.
        normalisation: of mean and std.
    """

    geometry: str
    interpolation: str
    normalisation: str
    class_names: str


class SourceModel:
    """A frozen classifier, split into features g and head h, with the input it was trained on.

    Args:
        module: any network from (N, 3, H, W) to logits (N, K). It is put in eval mode and frozen.
        mean, std: per channel, for values in [0, 1]; the input is (value/255 − mean) / std.
        size: pixels. Alone, images are resized to size × size; with `crop`, their shorter side is
            resized to `size` and the central crop × crop is taken. None: images stay as they are,
            unless the network takes one size only, which a trial run finds.
        crop: see `size`.
        interpolation: how images are resized; as it was trained.
        class_names: K names, or None for "0", "1", ….
        split: the dotted name of the head h inside `module`. None: found by tracing a forward pass
            for the linear layer, or 1×1 convolution that serves as one, whose output is the logits.
        accuracy: measured on clean test data, in [0, 1]; informative.
        adaptable: False: a network whose layers cannot be reached is taken, too; it only answers.

    Attributes:
        origins: where its input and class names come from.
        calibration: the record of its held-out answers, where there is one.
        reduced: whether it computes in bfloat16 what its weights are float32 for (`compute_in`).
        notices: sentences about what was chosen for the user, to be shown when the model starts.

    Raises:
        ValueError: the split cannot be found, nothing can adapt, the network answers with no
            logits or no numbers, the classes do not fit, or a number is out of range.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None,
        crop: int | None = None,
        class_names: Sequence[str] | None = None,
        split: str | None = None,
        accuracy: float | None = None,
        interpolation: Interpolation = "bilinear",
        adaptable: bool = True,
    ) -> None:
        sound = all(abs(each) <= MOST for each in mean) and all(
            1 / MOST <= each <= MOST for each in std
        )
        if len(mean) != 3 or len(std) != 3 or not sound:
            raise ValueError(
                f"mean and std must be three numbers each, at most {MOST:,} and std at least "
                f"1/{MOST:,}; got {mean} and {std}."
            )
        if (size is not None and size < 1) or (crop is not None and not 1 <= crop <= (size or 0)):
            raise ValueError(
                f"size must be 1 pixel or more, crop at most size; got size {size}, crop {crop}."
            )
        if not isinstance(module, nn.Module):
            raise ValueError(f"the network must be an nn.Module; got {type(module).__name__}.")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module  # the copies of a training run
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                "a scripted module cannot be adapted; give the module it was made of. A file of "
                "torch.jit.save is served frozen, as torchscript@FILE."
            )
        module.eval()  # what it returns is not relied on: many a `train` of one's own returns None
        self.module = module.requires_grad_(False)
        self.mean, self.std = tuple(mean), tuple(std)
        self.size, self.crop = size, crop
        self.interpolation: Interpolation = interpolation
        self.origins = Origins(MAKER, MAKER, MAKER, "none are stated")
        self.accuracy = accuracy
        self.calibration: CalibrationRecord | None = None
        self.reduced = False
        # Before anything else looks at the layers: without one to adapt the rest is pointless.
        self.adaptable = adaptable
        self.affine = affine_parameters(module)
        if adaptable and not self.affine:
            raise ValueError(
                "The network has no BatchNorm, LayerNorm, GroupNorm or RMSNorm layer with scale "
                "and shift; there is nothing that test-time adaptation could move."
            )
        trial = Trial(module, crop or size, split)
        self.split, self.classes, self.dtype = trial.split, trial.classes, trial.dtype
        self._first_precision = next(precisions(module))
        self.trial_side = trial.side
        self.feature_dimension = pooled(trial.features).shape[1]
        self.notices: list[str] = []
        if not trial.repeats:
            self.notices.append(
                "the network answers the same images otherwise when asked again (it draws at "
                "random, or keeps something): no answer can be repeated, not even after a reset."
            )
        if trial.fixed and adaptable:
            named = ", ".join(trial.fixed[:5]) + (", …" if len(trial.fixed) > 5 else "")
            self.notices.append(
                f"{named}: the scale or shift stays the source's whatever is learned "
                f"(in {len(trial.fixed)} normalisation layers): the network hands it to scripted "
                "code or a torch.autograd.Function, or lets no gradient through to it."
            )
        if size is None and not trial.takes_any_size:
            self.size = self.trial_side
            self.notices.append(
                f"the network does not take images of any size: they are resized to {self.size} × "
                f"{self.size} pixels; --size, or SourceModel(..., size=…), states another."
            )
        note_features(module.get_submodule(self.split))
        self.class_names = tuple(map(str, range(self.classes)))
        if class_names is not None:
            self.name_classes(class_names, MAKER)
        self._place()

    def _place(self) -> None:
        """Look up what depends on the device the module is on."""
        if self.reduced:
            self._refuse_to_reduce_others()  # it may have been converted since
        self.device = next(self.module.parameters()).device
        first = next(precisions(self.module))
        if first != self._first_precision:  # the module was converted since the trial run
            self._first_precision = self.dtype = first
        self.affine = affine_parameters(self.module)
        self.batch_norms = batch_norm_layers(self.module)
        self._flatten()
        self._mean, self._std = (
            torch.tensor(numbers, device=self.device, dtype=wide(self.dtype))[:, None, None]
            for numbers in (self.mean, self.std)
        )
        # In fewer operations, with its own scales, shifts and statistics. Now, not with the first
        # pass: while it is written, no other thread may run a network (see `fused`).
        self._make_runner()

    def _make_runner(self) -> None:
        dtype = torch.bfloat16 if self.reduced else torch.float32
        self._runner = Runner(
            self.module,
            head=self.split,
            classes=self.classes,
            device=self.device,
            affine=self.affine,
            batch_norms=self.batch_norms,
            fused=fused(self.module, self.trial_side, dtype),
            reduced=self.reduced,
        )

    def _flatten(self) -> None:
        """Lay scales and shifts, and the moments of the layers, one behind the other.

        Every stream begins with these tensors, float32 at least; nobody writes to them.
        """
        wider = {name: p.detach().to(wide(p.dtype)) for name, p in self.affine.items()}
        self.affine_layout = Layout.of(wider)
        self.source_affine = self.affine_layout.flattened(wider)
        self.narrower = {p.dtype for p in self.affine.values()} - {self.source_affine.dtype}
        means, squares = {}, {}
        for name, layer in self.batch_norms.items():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            means[name] = layer.running_mean.to(wide(layer.running_mean.dtype))
            squares[name] = layer.running_var.to(means[name].dtype) + means[name].square()
        self.moments_layout = Layout.of(means)
        shapes = self.moments_layout.shapes.items()
        self.moments_in_state = Layout(
            {f"moment{n}.{k}": shape for n in (1, 2) for k, shape in shapes}
        )
        flat = [self.moments_layout.flattened(each) for each in (means, squares)]
        self.source_moments = torch.stack(flat).to(self.device)

    @property
    def geometry(self) -> Geometry:
        """How a picture is brought to the size that it reads."""
        return Geometry(self.size, self.crop, self.interpolation)

    def name_classes(self, names: Sequence[str], origin: str) -> None:
        """Call its K classes by these names.

        Raises:
            ValueError: they are not K.
        """
        if len(names) != self.classes:
            raise ValueError(
                f"The network has {self.classes} classes, but {len(names)} class names were given."
            )
        self.class_names = tuple(names)
        self.origins = replace(self.origins, class_names=origin)

    def __getstate__(self) -> dict[str, Any]:
        """All but the fused network, whose weights oneDNN alone can read."""
        return {name: value for name, value in vars(self).items() if name != "_runner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_runner()

    def refresh(self) -> None:
        """Look at the network anew after other weights were loaded into it.

        Raises:
            ValueError: as when it was made.
        """
        Trial(self.module, self.trial_side, self.split)
        reduced = self.reduced
        if reduced:
            self._refuse_to_reduce_others()
        self.reduced = False  # until it is known what the other weights are like in float32
        for name in ("digest", "takes_one", "shares"):
            self.__dict__.pop(name, None)
        self.calibration = None
        self._place()
        if reduced:
            self.compute_in("bfloat16")

    def to(self, device: torch.device | str) -> Self:
        """Move the network; do so before any method is made on it.

        Raises:
            ValueError: it is to compute in bfloat16, and was converted since.
        """
        self.module.to(device)
        self._place()
        return self

    def compute_in(self, precision: Precision) -> Self:
        """Have convolutions and linear layers computed in `precision`; before any method is made.

        In bfloat16 torch's autocast brings what they read to it, and what lies between layers is of
        it. Weights, statistics, scales and shifts stay float32, as do losses and whatever lasts, so
        that the digest is the same and what was learned in one precision goes on in the other.

        Args:
            precision: float32 leaves a network of another precision as it is.

        Raises:
            ValueError: bfloat16 is wanted of a network whose weights are not all float32, or
                something else than these two. The model is as it was.
        """
        if precision not in get_args(Precision):
            raise ValueError(
                f"{precision!r} is no precision; accepted are {', '.join(get_args(Precision))}."
            )
        reduced = precision == "bfloat16"
        if reduced == self.reduced:
            return self
        if reduced:
            self._refuse_to_reduce_others()
            # Found out in float32: what bfloat16 rounds away might be another stream's images.
            _ = self.takes_one, self.shares
        self.reduced = reduced
        self._make_runner()
        return self

    def _refuse_to_reduce_others(self) -> None:
        kinds = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        if others := sorted(map(_named, kinds - {torch.float32})):
            raise ValueError(
                f"bfloat16 takes networks of float32, and this one has weights of "
                f"{', '.join(others)}; as float32, the default, it stays as it is."
            )

    @property
    def precision(self) -> str:
        """What it computes in, as torch names it: float32, bfloat16, …."""
        return "bfloat16" if self.reduced else self.weights_precision

    @property
    def weights_precision(self) -> str:
        """What it would compute in by itself."""
        return _named(self.dtype)

    @cached_property
    def digest(self) -> str:
        """A hash of weights, statistics and preprocessing: tells models of one spec apart."""
        input_: tuple[object, ...] = (self.mean, self.std, self.size, self.crop)
        if self.interpolation != "bilinear":  # once the only one: states and records are of that
            input_ += (self.interpolation,)
        digest = hashlib.sha256(repr(input_).encode())
        for name, tensor in self.module.state_dict().items():
            digest.update(name.encode())
            digest.update(_bytes(tensor))
        return digest.hexdigest()[:16]

    @cached_property
    def takes_one(self) -> bool:
        """Whether it answers a lone image: a network that drops the axis of one wants two."""
        one = torch.zeros(1, 3, self.trial_side, self.trial_side, device=self.device)
        try:
            with torch.no_grad():
                self._runner.run(self.normalize(one), None, source_look)
        except ModelError:
            return False
        return True

    @cached_property
    def shares(self) -> bool:
        """Whether several streams may share a pass: a row's answer depends on its stream alone."""
        side = self.trial_side
        noise = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
        inputs = self.normalize(noise.to(self.device))
        return may_share(self._runner, inputs, max(1e-3, 10 * torch.finfo(self.dtype).eps))

    def to_unit(self, images: Tensor) -> Tensor:
        """Bring images (N, 3, H, W), uint8 or float in [0, 1], to floats in [0, 1] on the device.

        They are float32 at least: what is half of a network's precision is coarse for a pixel.

        Raises:
            ValueError: the shape or type is another one.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
            raise ValueError(f"images must be (N >= 1, 3, H, W); got {tuple(images.shape)}")
        # The default memory layout whatever came in: another one would change the rounding.
        if images.dtype == torch.uint8:
            return images.to(self.device).contiguous().to(wide(self.dtype)) / 255
        if images.is_floating_point():
            return images.to(self.device, wide(self.dtype)).contiguous()
        raise ValueError(f"images must be uint8, or float in [0, 1]; got {images.dtype}")

    def normalize(self, unit: Tensor) -> Tensor:
        """Values in [0, 1] -> the network's input, in its precision."""
        return ((unit - self._mean) / self._std).to(self.dtype)

    def run(
        self,
        inputs: Tensor,
        *,
        affine: Mapping[str, Tensor] | None = None,
        look: Look = source_look,
    ) -> Output:
        """Run the network on normalised inputs (N, 3, H, W). Any number of threads may at once.

        Where streams are at work `together`, one pass answers what several of them ask for.

        Args:
            affine: replaces the source's normalisation parameters of these names; of any precision,
                the network sees its own.
            look: where the BatchNorm layers take their statistics from (`normalization`).

        Raises:
            ModelError: the network failed on them, or answered with something else than N rows of
                K logits.
        """
        wanted = WantedPass(
            self._runner, lambda: self.shares, inputs, affine, look, torch.is_grad_enabled()
        )
        output: Output = answered(wanted)
        return output


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(value: object) -> bytes:
    """The content of an entry of a state dict; numpy has no bfloat16."""
    if not isinstance(value, Tensor):
        return b""  # what a layer keeps besides tensors has no form of its own
    if value.is_quantized:
        value = value.int_repr()
    dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    return tensor_bytes(dense)
