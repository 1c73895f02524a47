"""T401: what each method brings, as a server would run it, on a quarter of the images."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.doctor.asked import Asked
from service.doctor.checks import Finding
from service.doctor.data import Right, Seen, mean_and_error
from service.doctor.installation import OUT_OF_MEMORY
from ttc_core.envelope.clauses import BUILT_IN
from ttc_core.errors import UserError
from ttc_core.evaluate import run_stream, warm_up
from ttc_core.methods import METHODS, Method, create, settings_for

# One of noise, one of blur, one of weather.
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "fog")
NATURAL = "natural order"
BATCH = 10
FEWEST = 50


@dataclass(frozen=True)
class Tried:
    """What came of it.

    Attributes:
        right: by method, and by stream: (n,) whether each image was answered rightly, 1 or 0.
        refused: the sentence of each method that does not run on this network, by name.
        milliseconds: an image took on average, learning too.
    """

    right: Mapping[str, Mapping[str, Right]]
    refused: Mapping[str, str] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)

    def above_source(self, method: str, stream: str) -> tuple[float, float]:
        """Accuracy less SOURCE's, and its standard error, image by image."""
        return mean_and_error(self.right[method][stream] - self.right["source"][stream])

    def mean_above(self, method: str, other: str = "source") -> tuple[float, float]:
        """Mean over the streams of accuracy less another's, and its standard error."""
        of = self.right[method]
        each = [mean_and_error(of[name] - self.right[other][name]) for name in of]
        means, errors = np.array(each).T
        return float(means.mean()), float(np.sqrt((errors**2).sum()) / len(errors))


def own_settings(method: str, seen: Seen) -> dict[str, str]:
    """What `--set` says for what was found, METHOD.PARAM → value."""
    off = method == "ttc_stream" and seen.mirrored_differ
    return {"ttc_stream.second_view": "off"} if off else {}


def look_at_methods(asked: Asked, seen: Seen) -> Generator[Finding, None, Tried]:
    """Yield how right each method is; return it for a recommendation."""
    random = np.random.default_rng(asked.seed)
    shuffled = random.permutation(seen.chosen)[: max(len(seen.chosen) // 4, FEWEST)]
    places = {name: shuffled for name in CORRUPTIONS} | {NATURAL: np.sort(shuffled)}
    names = list(METHODS) if seen.model.adaptable else ["source"]
    right: dict[str, dict[str, Right]] = {}
    refused: dict[str, str] = {}
    milliseconds: dict[str, float] = {}
    for number, name in enumerate(names, 1):
        asked.say(
            f"Method {number} of {len(names)}: {name} on {len(shuffled)} images under "
            f"{len(CORRUPTIONS)} corruptions and in natural order …"
        )
        try:
            method = _made(name, seen)
            right[name], milliseconds[name] = _run(method, seen, places)
        except (UserError, ValueError) as error:
            refused[name] = str(error)
        except OUT_OF_MEMORY:
            refused[name] = f"memory is too little for {BATCH} images at once"
    tried = Tried(right, refused, milliseconds)
    yield _shown(tried, len(shuffled))
    return tried


def _made(name: str, seen: Seen) -> Method:
    settings = settings_for(name, own_settings(name, seen), statistics="moving")
    guard = "off" if name == "source" else "on"
    return create(name, seen.model, guard=guard, envelope=BUILT_IN, **settings)


def _run(
    method: Method, seen: Seen, places: Mapping[str, NDArray[np.int64]]
) -> tuple[dict[str, Right], float]:
    right: dict[str, Right] = {}
    taken = 0.0
    for name, chosen in places.items():
        method.reset()
        stream = seen.stream("clean" if name == NATURAL else name, chosen)
        if not right:
            warm_up(method, seen.model.trial_side, images=BATCH)
        tally = run_stream(method, stream, BATCH)
        taken += tally.seconds / len(stream)
        columns = tally.columns
        right[name] = np.asarray(columns["predicted"] == columns["labels"], np.float64)
    return right, 1000 * taken / len(places)


def _shown(tried: Tried, images: int) -> Finding:
    if "source" not in tried.right:
        return Finding("T401", "problem", f"source fails: {tried.refused['source']}")
    streams = list(tried.right["source"])
    numbers = {
        name: {
            "accuracy": {stream: float(of[stream].mean()) for stream in streams},
            "above_source": {stream: tried.above_source(name, stream) for stream in streams},
            "mean_above_source": tried.mean_above(name),
            "milliseconds": tried.milliseconds[name],
        }
        for name, of in tried.right.items()
    }
    lines = [
        f"accuracy on {images} images, {BATCH} at a time, in %; difference from source, ± its "
        "standard error",
        f"{'':<11}" + "".join(f"{stream:>23}" for stream in (*streams, "mean")) + f"{'ms':>9}",
    ]
    for name, of in tried.right.items():
        cells = [
            _cell(100 * float(of[stream].mean()), *tried.above_source(name, stream))
            for stream in streams
        ]
        mean = 100 * float(np.mean([each.mean() for each in of.values()]))
        cells.append(_cell(mean, *tried.mean_above(name)))
        lines.append(
            f"{name:<11}"
            + "".join(f"{cell:>23}" for cell in cells)
            + f"{tried.milliseconds[name]:>9.1f}"
        )
    lines += [f"{name:<11}{sentence}" for name, sentence in tried.refused.items()]
    few = images < FEWEST
    if few:
        lines.append(f"fewer than {FEWEST} images: hardly more than a trial run")
    return Finding(
        "T401",
        "note" if few else "ok",
        "\n".join(lines),
        {"methods": numbers, "refused": dict(tried.refused), "images": images},
    )


def _cell(accuracy: float, difference: float, error: float) -> str:
    return f"{accuracy:.1f} {100 * difference:+.1f} ± {100 * error:.1f}"
