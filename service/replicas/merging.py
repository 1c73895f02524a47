"""Many replicas' answers to one request made one: documents of JSON, and metrics."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import Metric

# As `Events` keeps of one process.
MOST_EVENTS = 100
# Of the door's own metrics those that it alone can tell: replicas are handed whole requests.
_ITS_ALONE = ("ttc_http_", "ttc_connections_", "ttc_live_")
OF_THE_DOOR = (*_ITS_ALONE, "ttc_rejected_", "ttc_ready", "process_")

Document = dict[str, Any]


def status(documents: Mapping[str, Document], files: int) -> Document:
    """/status of all: streams side by side, totals summed, events in their order.

    Args:
        documents: by replica; that of any is the model's and the settings'.
        files: streams in the state folder.
    """
    all_of = list(documents.values())
    shedding = [each["shedding"] for each in all_of if each["shedding"] is not None]
    merged = {**all_of[0], "ready": any(each["ready"] for each in all_of)}
    merged["idle"] = all(each["idle"] for each in all_of)
    # The one that images go without most at; each replica's is told with it.
    merged["shedding"] = max(shedding, key=lambda each: each["now"].get("load", 0.0), default=None)
    # Each tells how many files are of no stream in its memory.
    in_memory = sum(max(0, files - each["saved_streams"]) for each in all_of)
    merged["saved_streams"] = max(0, files - in_memory)
    for name in ("streams", "saved_doubted"):
        merged[name] = {key: value for each in all_of for key, value in each[name].items()}
    for name in merged["streams"]:
        merged["saved_doubted"].pop(name, None)
    merged["changes"] = None  # each replica has a log of its own
    merged["truth"] = _summed_by_name(each["truth"] for each in all_of)
    merged["saved_unfit"] = {
        "streams": sum(each["saved_unfit"]["streams"] for each in all_of),
        "reasons": added(each["saved_unfit"]["reasons"] for each in all_of),
    }
    events = [
        {**event, "replica": replica}
        for replica, each in documents.items()
        for event in each["events"]
    ]
    merged["events"] = sorted(events, key=lambda event: event["time"])[-MOST_EVENTS:]
    return merged


def _summed_by_name(
    parts: Iterable[Mapping[str, Mapping[str, int]]],
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, numbers in part.items():
            found[name] = added([found.get(name, {}), numbers])
    return found


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Numbers summed by their names."""
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = found.get(name, 0) + value
    return found


def reset(documents: Sequence[Document]) -> Document:
    """/reset of all streams."""
    return {
        "streams": list(dict.fromkeys(name for each in documents for name in each["streams"])),
        "known": any(each["known"] for each in documents),
        "discarded": added(each["discarded"] for each in documents),
        "kept_aside": sum(each["kept_aside"] for each in documents),
    }


def feedback(documents: Sequence[Document]) -> Document:
    """/feedback: each replica knows the answers that it gave; unknown is what none knows."""
    total = _outcomes(documents[0]).total()
    merged: Document = {
        name: sum(each[name] for each in documents) for name in ("taken", "weighed")
    }
    for name in ("repeated", "contradicting"):
        merged[name] = {
            "count": sum(each[name]["count"] for each in documents),
            "images": [image for each in documents for image in each[name]["images"]],
        }
    known = merged["taken"] + merged["repeated"]["count"] + merged["contradicting"]["count"]
    others = [each["unknown"]["images"] for each in documents[1:]]
    images = [
        image
        for image in documents[0]["unknown"]["images"]
        if all(image in each for each in others)
    ]
    count = max(0, total - known)
    return merged | {"unknown": {"count": count, "images": images[:count]}}


def _outcomes(document: Document) -> Counter[str]:
    names = ("unknown", "repeated", "contradicting")
    return Counter(
        {"taken": document["taken"], **{name: document[name]["count"] for name in names}}
    )


def statistics(documents: Sequence[Document]) -> Document:
    """/v2's statistics: counts and times summed, the last inference of all."""
    merged: dict[str, Document] = {}
    for each in (model for document in documents for model in document["model_stats"]):
        found = merged.setdefault(each["name"], {**each, "inference_stats": {}})
        stats = found["inference_stats"]
        for stage, numbers in each["inference_stats"].items():
            stats[stage] = added([stats.get(stage, {}), numbers])
        if found is not each and stats is not each:
            found["last_inference"] = max(found["last_inference"], each["last_inference"])
    for name, found in merged.items():
        for counted in ("inference_count", "execution_count"):
            found[counted] = sum(
                model[counted]
                for document in documents
                for model in document["model_stats"]
                if model["name"] == name
            )
    return {"model_stats": list(merged.values())}


class Collected:
    """Metrics of the door and of all replicas, as one registry; a replica's have its name.

    A replica that is gone takes its series with it: rates over the others stay right, and none
    falls.
    """

    def __init__(
        self, own: Iterable[Metric], of_replicas: Iterable[tuple[str, Iterable[Metric]]]
    ) -> None:
        self._families: dict[str, Metric] = {}
        for family in own:
            if family.name.startswith(OF_THE_DOOR):
                self._add(family, {})
        for replica, families in of_replicas:
            for family in families:
                if not family.name.startswith(_ITS_ALONE):
                    self._add(family, {"replica": replica})

    def _add(self, family: Metric, labels: Mapping[str, str]) -> None:
        kept = self._families.get(family.name)
        if kept is None:
            kept = Metric(family.name, family.documentation, family.type, family.unit)
            self._families[family.name] = kept
        kept.samples += [
            sample._replace(labels={**sample.labels, **labels}) for sample in family.samples
        ]

    def collect(self) -> Iterable[Metric]:
        """The families, each once."""
        return self._families.values()
