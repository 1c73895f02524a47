"""`ttc serve`: the service, until it is told to end."""

import gc
import logging
import os
import socket
import sys
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click

from service.cli.options import (
    NotAccepted,
    SettingsCommand,
    check_watched,
    chosen_settings,
    load_model,
    pairs_of,
    sets_nothing,
    settings_options,
)
from service.settings import SECRETS, Settings
from service.settings_reading import Reading, read
from service.settings_words import flag
from ttc_core.errors import ModelError, UserError

if TYPE_CHECKING:
    from ttc_core.methods import Method

log = logging.getLogger(__name__)


@click.command(
    cls=SettingsCommand, epilog="Example: ttc serve --method ttc --set ttc.lr=0.0005 --port 8000"
)
@settings_options
def serve(**given: Any) -> None:
    """Serve a model that adapts to what it is asked about."""
    from service import logs

    try:
        reading = read(chosen_settings(given))
    except ValueError as error:
        raise NotAccepted(str(error)) from error
    settings = reading.settings
    logs.configure(settings.log_format)
    for notice in reading.notices:
        log.warning(notice)
    try:
        _serve(reading)
    except (click.ClickException, UserError) as error:
        if settings.log_format == "text":
            raise  # shown as every verb's
        log.critical("%s", error.message if isinstance(error, click.ClickException) else error)
        sys.exit(getattr(error, "exit_code", 1))


def _serve(reading: Reading) -> None:
    settings = reading.settings
    # torch's threads spin while they wait for one another. Beside other work (decoding, clients, a
    # neighbour) that takes the processor from those they wait for: let them spin for moments only.
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")  # read when torch is imported
    # Whoever waits for the interpreter's lock asks for it after so long. Parsing megabytes would
    # else keep the event loop and the device waiting for 5 ms, several times a request.
    sys.setswitchinterval(0.001)
    log.info("Loading %s …", settings.model)  # torch alone takes seconds, on a busy machine minutes
    import torch

    from service import ray_cluster, server, tracing
    from service.app import build

    # What was imported stays. Looked through again each time that a request's JSON brings thousands
    # of objects, its million would keep every thread waiting for a second.
    gc.freeze()

    if settings.ray:
        ray_cluster.require("--ray")
    if settings.traces:
        try:
            tracing.export(version("ttc-service"))
        except ImportError as error:
            raise click.UsageError(
                "--traces needs the extra otel: pip install 'ttc-service[otel]'."
            ) from error
    try:
        listener = server.bind(settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "that is no name of a host"
        raise click.ClickException(
            f"Cannot listen on {settings.host[:100]}:{settings.port}: {reason}. "
            "Choose another with --port, or 0 for a free one."
        ) from error
    with listener:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        load = partial(load_source, settings)
        source = load()
        if settings.ray:
            from service.replicas.deploying import serve_replicas

            _introduce(settings, source)
            del source  # each replica loads its own
            listening = partial(_tell_address, listener)
            well = serve_replicas(settings, reading.origins, load, listener, listening)
        else:
            app = build(settings, source, load, reading.origins)
            _introduce(settings, source)
            del source  # other weights may come in its place, and its memory is to be free then
            _tell_address(listener)
            service = partial(getattr, app.state, "service", None)
            well = server.run(app, settings, listener, service)
        if not well:
            raise click.ClickException("The service failed; the lines above say why.")


def _tell_address(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    log.info("Listening on http://%s:%d  (page: /, API: /docs, metrics: /metrics)", shown, port)


def load_source(settings: Settings) -> "Method":
    """Make the method at the source on the model that the settings name, and try it out.

    Raises:
        UserError, click.ClickException: the model cannot be loaded, or a setting does not fit.
    """
    from service.envelope_file import in_force
    from ttc_core.guard import divided
    from ttc_core.methods import create, settings_for

    try:
        envelope = in_force(settings)
    except ValueError as error:
        raise NotAccepted(str(error)) from error
    model = load_model(
        settings.model,
        settings.device,
        settings.mean,
        settings.std,
        settings.calibration,
        size=settings.size,
        crop=settings.crop,
        interpolation=settings.interpolation,
        class_names=settings.class_names,
        precision=settings.precision,
        trust_code=settings.trust_code,
        warn=log.warning,
    )
    try:
        watching, pairs = divided(pairs_of(settings.set))
        source = create(
            settings.method,
            model,
            guard=settings.guard,
            watching=watching,
            on_shift=settings.adapt == "on-shift",
            envelope=envelope,
            **settings_for(settings.method, pairs, statistics=settings.statistics),
        )
    except (ValueError, TypeError) as error:
        raise NotAccepted(str(error)) from error
    check_watched(watching, [source])
    _try_out(source, settings.method)
    return source


def _try_out(method: "Method", name: str) -> None:
    """Have what fails at its first batch fail now, not while it serves."""
    from ttc_core.evaluate import warm_up
    from ttc_core.plugins import guarded

    try:
        with guarded("its code failed"):
            warm_up(method)
    except UserError as error:
        raise ModelError(f"{name} fails at its first batch: {error}") from error


def _introduce(settings: Settings, source: "Method") -> None:
    """Tell what is served, with which settings, and what to beware of."""
    import torch

    from ttc_core.guard import calibrated
    from ttc_core.methods import far_off

    model = source.model
    adapted = model.affine.values() if "affine" in source.adapts else ()
    count = sum(tensor.numel() for tensor in adapted)
    threads = f", {torch.get_num_threads()} threads" if model.device.type == "cpu" else ""
    log.info(
        f"Model {settings.model} on {model.device}{threads}, in {model.precision}: "
        f"{model.classes} classes, "
        f"features ({model.feature_dimension}) → {model.split} → logits, "
        f"{count:,} adapted parameters in {len(adapted)} tensors"
    )
    origins, numbers = model.origins, "{:.4g}, {:.4g}, {:.4g}"
    log.info(
        f"Input: {model.geometry} ({origins.geometry}); mean {numbers.format(*model.mean)}, "
        f"deviation {numbers.format(*model.std)} ({origins.normalisation}); names of classes: "
        f"{origins.class_names}"
    )
    used = ", ".join(f"{k}={v}" for k, v in source.settings.items())
    log.info("Method %s: %s", settings.method, used or "no settings")
    calibrated_by, _ = calibrated(source)
    if (record := model.calibration) is not None and calibrated_by != "none":
        whose = "" if calibrated_by == "record" else "of the guard's estimates alone, "
        log.info(
            f"Calibration: {whose}by the record of {record.images:,} images of {record.data}, "
            f"{record.accuracy:.1%} right and {record.confidence:.1%} sure: temperature "
            f"{record.temperature:.3g}"
        )
    else:
        log.info("Calibration: by no record")
    _introduce_envelope(settings, source)
    chosen = settings.model_dump(exclude={"model", "method", "set", *SECRETS}, mode="json")
    log.info("Settings: %s", ", ".join(f"{flag(k)} {v}" for k, v in chosen.items()))
    for sentence in sets_nothing(pairs_of(settings.set), {settings.method: source}):
        log.warning(sentence)
    for sentence in far_off(settings.method, source):
        log.warning(sentence)
    if settings.max_body > settings.max_queue_bytes:
        log.warning(
            f"--max-queue-bytes {settings.max_queue_bytes} is less than --max-body "
            f"{settings.max_body}: larger requests than that are never taken."
        )
    if settings.max_images > settings.max_queue:
        log.warning(
            f"--max-queue {settings.max_queue} is less than --max-images {settings.max_images}: "
            "requests with more images than that are never taken."
        )
    statistics = source.settings.get("statistics")
    if statistics == "batch" and model.batch_norms and settings.max_wait == 0:
        log.warning(
            "Batch statistics need full batches; images that come one by one are answered near "
            "chance. Let them wait for one another with --max-wait, or leave --paper out."
        )
    if settings.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
        log.warning(
            f"{settings.host} may be reached from elsewhere and no --token is set: anyone "
            "who can reach it can steer the model."
        )


def _introduce_envelope(settings: Settings, source: "Method") -> None:
    """Tell what adaptation may change."""
    from service.settings_file import toml
    from ttc_core.envelope.clauses import BUILT_IN, UNBOUNDED
    from ttc_core.guard import mode_of

    envelope = source.envelope
    if envelope == UNBOUNDED or not source.adapts:
        log.info("Envelope: none")
        return
    which = "built in" if envelope == BUILT_IN else str(settings.envelope)
    clauses = ", ".join(f"{name} {toml(value)}" for name, value in envelope)
    log.info("Envelope: %s, digest %s: %s", which, envelope.digest, clauses)
    if envelope.worse_than_source != BUILT_IN.worse_than_source and mode_of(source) != "on":
        log.warning("The envelope's worse_than_source says nothing here: it needs --guard on.")
