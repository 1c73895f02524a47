"""T2: whether the model loads, what it reads and answers, what of it adapts, what it costs."""

from collections import Counter
from collections.abc import Generator

import torch

from service.doctor.asked import Asked
from service.doctor.checks import Finding
from service.doctor.installation import (
    BATCH,
    OUT_OF_MEMORY,
    PATIENCE,
    bfloat16,
    bundled_at_work,
    seconds,
)
from service.settings_words import default
from service.stream_record import state_bytes
from ttc_core.errors import ModelError, UserError
from ttc_core.methods import DEFAULT_METHOD, create
from ttc_core.model import SourceModel
from ttc_core.normalization import NORMALIZATION_LAYERS

BATCHES = (1, 8, BATCH)
# Of which a stream's memory is taken: it has moved by then.
ANSWERED = 16


def look_at_model(asked: Asked) -> Generator[Finding, None, SourceModel | None]:
    """Yield what is found of the model; return it, or None where it does not load."""
    asked.say(f"Loading {asked.model} …")
    try:
        model = asked.load()
    except UserError as error:
        yield Finding("T201", "problem", str(error))
        return None
    count = sum(each.numel() for each in model.module.parameters())
    yield Finding(
        "T201",
        "ok",
        f"{asked.model} loads: {count:,} parameters, computed in {model.precision}",
        {"parameters": count, "precision": model.precision, "digest": model.digest},
    )
    yield _input(model)
    yield _head(model)
    yield _layers(model)
    if model.notices:
        yield Finding("T205", "note", " ".join(model.notices), {"notices": list(model.notices)})
    asked.say("Timing forward passes …")
    timed = _times(model)
    yield timed
    if model.adaptable:
        yield _memory(model)
    yield _alone_and_shared(model)
    largest = timed.numbers["seconds"].get(str(BATCH))
    # A batch that takes so long would be waited for eight times more.
    batch = BATCH if largest is not None and largest < PATIENCE else 8
    origins = model.origins
    is_fed_as_trained = origins.geometry == origins.interpolation == origins.normalisation
    if asked.model == "bundled" and is_fed_as_trained:
        yield bundled_at_work(model)
    if str(batch) in timed.numbers["seconds"]:
        yield bfloat16(asked, batch)
    return model


def _input(model: SourceModel) -> Finding:
    origins = model.origins
    mean, std = (", ".join(f"{each:.4g}" for each in group) for group in (model.mean, model.std))
    whence = origins.geometry
    if origins.interpolation != whence:
        whence += f"; interpolation from {origins.interpolation}"
    return Finding(
        "T202",
        "ok",
        f"{model.geometry} (from {whence}); mean {mean}, deviation {std} (from "
        f"{origins.normalisation})",
        {
            "size": model.size,
            "crop": model.crop,
            "interpolation": model.interpolation,
            "mean": list(model.mean),
            "std": list(model.std),
        },
    )


def _head(model: SourceModel) -> Finding:
    names = ", ".join(model.class_names[:3]) + (", …" if model.classes > 3 else "")
    unnamed = model.class_names == tuple(map(str, range(model.classes)))
    said = "classes without names" if unnamed else f"classes ({names})"
    return Finding(
        "T203",
        "note" if unnamed else "ok",
        f"features ({model.feature_dimension}) → {model.split or 'the program'} → "
        f"{model.classes:,} {said}" + ("; --class-names FILE states them" if unnamed else ""),
        {"split": model.split, "features": model.feature_dimension, "classes": model.classes},
    )


def _layers(model: SourceModel) -> Finding:
    if not model.adaptable:
        return Finding(
            "T204",
            "note",
            "nothing adapts: a program's layers are out of reach, it is served frozen",
            {"layers": {}, "adapted": 0},
        )
    layers = Counter(
        kind.__name__.removeprefix("_")
        for layer in model.module.modules()
        for kind in NORMALIZATION_LAYERS
        if isinstance(layer, kind)
    )
    adapted = sum(each.numel() for each in model.affine.values())
    listed = ", ".join(f"{n} {kind}" for kind, n in layers.items())
    follow = (
        f"the statistics of {len(model.batch_norms)} follow the stream"
        if model.batch_norms
        else "no BatchNorm layer with running statistics: norm refuses it, and less is gained"
    )
    return Finding(
        "T204",
        "ok" if model.batch_norms else "note",
        f"normalisation layers: {listed}; {adapted:,} scales and shifts in "
        f"{len(model.affine)} tensors can be learned; {follow}",
        {"layers": dict(layers), "adapted": adapted, "following": len(model.batch_norms)},
    )


def _times(model: SourceModel) -> Finding:
    found: dict[str, float] = {}
    failed = ""
    for batch in BATCHES:
        try:
            found[str(batch)] = seconds(model, batch)
        except OUT_OF_MEMORY:
            failed = f"; memory is too little for {batch} images at once, see --max-batch"
            break
        except ModelError as error:
            failed = f"; {batch} at once fail: {error}"
    said = ", ".join(
        f"{batch} image{'s' if batch != '1' else ''} {1000 * taken:,.1f} ms "
        f"({1000 * taken / int(batch):,.2f} each)"
        for batch, taken in found.items()
    )
    return Finding(
        "T206",
        "note" if failed else "ok",
        f"a forward pass: {said or 'none came to an end'}{failed}",
        {"seconds": found},
    )


def _memory(model: SourceModel) -> Finding:
    method = create(DEFAULT_METHOD, model, guard="on")
    side = model.trial_side
    noise = torch.randint(0, 256, (ANSWERED, 3, side, side), dtype=torch.uint8)
    try:
        method.adapt(method.predict(noise))
    except UserError as error:
        return Finding("T207", "problem", f"{DEFAULT_METHOD} fails at its first batch: {error}")
    except OUT_OF_MEMORY:
        return Finding(
            "T207",
            "problem",
            f"memory is too little for {DEFAULT_METHOD} to learn from {ANSWERED} images at once; "
            "with a smaller --max-batch, or --method source, it may be enough",
        )
    size = state_bytes(method)
    most = default("max_stream_bytes")
    room = most // max(size, 1)
    return Finding(
        "T207",
        "ok",
        f"a stream of {DEFAULT_METHOD} keeps {size / 2**20:,.2f} MiB after {ANSWERED} images; the "
        f"usual {most / 2**30:g} GiB of --max-stream-bytes hold {room:,} of them",
        {"bytes": size, "streams": room},
    )


def _alone_and_shared(model: SourceModel) -> Finding:
    alone = "is answered" if model.takes_one else "is NOT answered: send two at least"
    shared = "share passes" if model.shares else "run one after another, none shares a pass"
    return Finding(
        "T208",
        "ok" if model.takes_one and model.shares else "note",
        f"a lone image {alone}; streams {shared}",
        {"takes_one": model.takes_one, "shares": model.shares},
    )
