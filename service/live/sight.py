"""What the live page shows of one process: what its parts publish, read from any thread."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from service.batcher import Batcher
from service.engine import Engine
from service.live.rows import Seen
from service.live.schemas import LiveCounters, LiveGauges, LiveModel
from service.metrics import Metrics, distribution, total
from service.settings import Settings
from service.stream_reports import estimated_accuracy
from ttc_core.methods.contract import ADAPTING, HELD, ROLLED_BACK

# Routes of which a request is one for answers.
ANSWERING = (
    "/predict",
    "/v2/models/{model}/infer",
    "/v2/models/{model}/versions/{version}/infer",
)


class Sight(Protocol):
    """Whatever can be looked at: a process, or many.

    Attributes:
        is_dear: it is looked at only where somebody reads.
    """

    is_dear: bool

    def model(self) -> LiveModel:
        """The model that answers now."""

    def numbers(self) -> tuple[LiveCounters, LiveGauges]:
        """Totals since the start, and how things are."""

    def streams(self) -> Mapping[str, Seen]:
        """The streams by name."""


class OwnSight:
    """This process.

    Args:
        told: a method's mode as people are told it.
    """

    is_dear = False

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        engine: Engine,
        batcher: Batcher[Any, Any],
        *,
        told: Callable[[str], str],
    ) -> None:
        self._settings, self._metrics = settings, metrics
        self._engine, self._batcher, self._told = engine, batcher, told

    def model(self) -> LiveModel:
        """The model that answers now."""
        model = self._engine.source.model
        return LiveModel(name=self._settings.model, digest=model.digest, classes=model.classes)

    def numbers(self) -> tuple[LiveCounters, LiveGauges]:
        """Totals since the start, and how things are."""
        return self._counters(), self._gauges()

    def _counters(self) -> LiveCounters:
        metrics = self._metrics
        entropies, entropy_sum = distribution(metrics.entropy)
        latencies, _ = distribution(*(metrics.request_seconds.labels(each) for each in ANSWERING))
        return LiveCounters(
            images=int(total(metrics.images)),
            rejected=int(total(metrics.rejected)),
            cancelled=int(total(metrics.cancelled)),
            labelled=int(total(metrics.labelled)),
            correct=int(total(metrics.correct)),
            selected=int(total(metrics.selected)),
            considered=int(total(metrics.considered)),
            steps=int(total(metrics.steps)),
            suspects=int(total(metrics.suspects)),
            entropy_sum=round(entropy_sum, 4),
            entropy_count=entropies[-1],
            request_seconds_buckets=latencies,
            guard_actions=int(total(metrics.guard_actions, observed="false")),
            resets=int(total(metrics.resets)),
            rollbacks=int(total(metrics.rollbacks)),
        )

    def _gauges(self) -> LiveGauges:
        metrics, records = self._metrics, self._engine.streams
        modes = [self._told(record.mode) for record in records.values()]
        # What is held is answered by the source: what has adapted there is served to nobody.
        served = [record for record in records.values() if record.mode != HELD]
        return LiveGauges(
            ready=bool(total(metrics.ready)),
            queue_images=self._batcher.waiting_images,
            drift=_rounded(total(metrics.drift)) or 0.0,
            streams=len(records),
            learning=modes.count(ADAPTING) + modes.count(ROLLED_BACK),
            held=int(total(metrics.held)),
            doubted=int(total(metrics.doubted)),
            silent=int(total(metrics.silent_streams)),
            estimated_adapted=_rounded(estimated_accuracy(served, "adapted")),
            estimated_source=_rounded(estimated_accuracy(served, "source")),
            window_accuracy=_rounded(total(metrics.window_accuracy)),
        )

    def streams(self) -> dict[str, Seen]:
        """All streams in memory; of the others those doubted, as far as /status has them, and
        those silent."""
        engine, told = self._engine, self._told
        records, truth, watches = engine.streams, engine.truth.streams, engine.watches
        silent, heard = engine.silence.silent_since, engine.silence.last_heard
        found = {
            name: Seen(
                in_memory=True,
                mode=told(record.mode),
                images=record.images,
                version=record.version,
                drift=record.drift,
                doubted_since=record.doubted_since if watches else None,
                held_since=record.held_since,
                silent_since=silent.get(name),
                last_image=heard.get(name),
                suspect=record.suspect,
                suspect_since=record.suspect_since,
                suspect_in_a_row=record.suspect_in_a_row,
                suspects=dict(record.suspects),
                estimates=record.estimates,
                truth=truth.get(name),
                acts=record.acts,
            )
            for name, record in records.items()
        }
        for name, saved in engine.saved_doubted().items():
            if name not in found:
                found[name] = Seen(
                    in_memory=False,
                    mode=saved.mode,
                    images=saved.images,
                    doubted_since=saved.doubted_since,
                    held_since=saved.held_since if saved.mode == HELD else None,
                    silent_since=silent.get(name),
                    last_image=heard.get(name),
                    truth=truth.get(name),
                    acts=tuple(saved.guard),
                )
        for name, since in silent.items():
            if name not in found:
                found[name] = Seen(
                    in_memory=False,
                    silent_since=since,
                    last_image=heard.get(name),
                    truth=truth.get(name),
                )
        return found


def _rounded(number: float) -> float | None:
    """A number as it is sent; NaN is none."""
    return None if number != number else round(number, 6)
