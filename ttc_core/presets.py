"""What each table and figure of the paper needs: methods, their settings, batch sizes.

Readings of the paper are METHOD §2.19 (Table 7: exactly one switch on) and DECISIONS.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ttc_core.corruptions import CORRUPTIONS
from ttc_core.envelope.clauses import Envelope
from ttc_core.guard import default_mode
from ttc_core.methods import PAPER_METHODS, Method, create
from ttc_core.model import SourceModel
from ttc_core.supervised import Supervised

SUPERVISED = "supervised"
TTC_SWITCHES = ("rla", "spc", "ss", "ga")


@dataclass(frozen=True)
class Variant:
    """A method with the settings that make it a line of its own.

    Attributes:
        settings: what differs from the method's defaults.
        batch_size: None: whatever is asked for.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None

    def create(
        self,
        model: SourceModel,
        settings: Mapping[str, Any],
        *,
        guard: str | None = None,
        watching: Mapping[str, Any] | None = None,
        on_shift: bool = False,
        envelope: Envelope | None = None,
    ) -> Method:
        """Make the method, at the source.

        Args:
            settings: more of them; the variant's own count where both name one.
            guard, watching, on_shift, envelope: as in `methods.create`; no guard: what is usual for
                the method. What is trained with labels adapts nothing, and has no envelope.

        Raises:
            ValueError: as in `methods.create`.
        """
        own = {**settings, **self.settings}
        if self.method == SUPERVISED:
            return Supervised(model, **own)
        guard = guard or default_mode(self.method)
        return create(
            self.method,
            model,
            guard=guard,
            watching=watching,
            on_shift=on_shift,
            envelope=envelope,
            **own,
        )


@dataclass(frozen=True)
class Preset:
    """The runs behind a table or figure.

    Attributes:
        corruptions: by default.
        channels: how many channels of the features are kept beside each row.
    """

    variants: tuple[Variant, ...]
    corruptions: tuple[str, ...] = CORRUPTIONS
    channels: int = 0

    @property
    def chooses_batch_sizes(self) -> bool:
        return any(variant.batch_size is not None for variant in self.variants)

    def restricted(self, methods: Sequence[str]) -> "Preset":
        """Only these methods; one that the preset does not name runs once, at its defaults."""
        known = {variant.method for variant in self.variants}
        kept = [variant for variant in self.variants if variant.method in methods]
        kept += [Variant(name) for name in methods if name not in known]
        return Preset(tuple(kept), self.corruptions, self.channels)


def plain(methods: Iterable[str]) -> Preset:
    """Each method once, at its defaults."""
    return Preset(tuple(Variant(name) for name in methods))


def _switched(*on: str) -> dict[str, bool]:
    """TTC's switches, these on and the others off."""
    return {name: name in on for name in TTC_SWITCHES}


_AUGMENTATIONS = (
    "resized_crop",
    "rotation",
    "gaussian_noise",
    "vertical_flip",
    "horizontal_flip",
)
_BATCH_SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
_TENT_WITH_ACCUMULATION = _switched("ga")

_ALL = plain(PAPER_METHODS)
PRESETS: dict[str, Preset] = {
    "table1": Preset((Variant("source"), Variant("tent", {}, 1), Variant("tent", {}, 20))),
    "table2": _ALL,
    "table3": _ALL,
    "table4": _ALL,
    "table5": Preset(tuple(Variant("ttc", {"augmentation": name}) for name in _AUGMENTATIONS)),
    "table6": _ALL,
    "table7": Preset(
        (
            Variant("tent"),
            *(Variant("ttc", _switched(part)) for part in TTC_SWITCHES),
            Variant("ttc"),
        )
    ),
    "figure2": Preset(
        tuple(
            Variant(method, settings, batch_size)
            for method, settings in (
                *((name, {}) for name in PAPER_METHODS),
                ("ttc", _TENT_WITH_ACCUMULATION),
            )
            for batch_size in _BATCH_SIZES
        )
    ),
    "figure3": Preset(
        (Variant(SUPERVISED), Variant("tent"), Variant("ttc")), ("impulse_noise",), channels=6
    ),
}
"""By name. Figure 1 has no data and no model: see `entropy_minimisation`."""
