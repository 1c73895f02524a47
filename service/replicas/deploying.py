"""Replicas started on Ray Serve, our server before them, and the end of both."""

import contextlib
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from service import logs, ray_cluster, server
from service.errors import Refused
from service.leases import Leases
from service.replicas import APPLICATION, DEPLOYMENT
from service.replicas.door import Door
from service.replicas.fleet import Fleet
from service.replicas.replica import Replica, digest_of
from service.settings import Settings
from service.settings_reading import Origin
from service.state_folder import StateFolder, StateFolderError
from ttc_core.errors import UserError
from ttc_core.methods import Method

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# How often Ray looks whether a replica lives, which is how long its streams wait where it has died.
# One that says nothing is given up after the third look in a row, each of which waits so long.
HEALTH_SECONDS, HEALTH_TIMEOUT = 1.0, 5.0
# Requests that Ray lets a replica have, of all doors together: its own queue says when it is full.
MOST_REQUESTS = 100_000
# How long replicas that are there may take to say whose they are; how often a start is looked at,
# and after how long it is told what it waits for.
ASKED_SECONDS = 30.0
LOOK_SECONDS, TOLD_SECONDS = 0.5, 30.0
# How often a replica that is to end looks whether all its requests are answered.
DRAIN_LOOK_SECONDS = 0.1
# A replica goes when the load has been lower for so many times as long as it has to be higher.
PATIENCE_DOWN = 10


class RayReplica(Replica):
    """A replica as Ray Serve runs it, in a process of its own."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self,
        settings: Settings,
        origins: Mapping[str, Origin],
        load: Callable[[], Method],
        fleet: str,
        door: str,
    ) -> None:
        import torch
        from ray import serve

        logs.configure(settings.log_format)
        # As `ttc serve` has them.
        sys.setswitchinterval(0.001)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        name = serve.get_replica_context().replica_id.unique_id
        others = Fleet(serve.get_deployment_handle(DEPLOYMENT, APPLICATION))
        super().__init__(settings, origins, load, name, others, fleet, door)
        await self.start()

    async def __del__(self) -> None:
        # Ray calls it once nothing is being answered, and waits for it.
        if hasattr(self, "_ending"):
            await self.end()


class ReplicasError(UserError):
    """The replicas cannot be started; the text says why."""


def serve_replicas(
    settings: Settings,
    origins: Mapping[str, Origin],
    load: Callable[[], Method],
    listener: socket.socket,
    listening: Callable[[], None],
) -> bool:
    """Serve on a bound socket, with replicas behind it, until a signal.

    Replicas of the same settings that are there already, in the cluster of RAY_ADDRESS, are used,
    and stay. Those of a command that is gone, which cannot end them any more, are ours then; where
    they are of other settings they end, and ours are started.

    Args:
        load: makes the method at the source, in each replica.
        listening: called when the replicas are ready.

    Returns:
        Whether all went well to the end.

    Raises:
        RayMissing: Ray is not installed.
        StateFolderError: the folder cannot be used.
        ReplicasError: the replicas do not start, or others are there.
    """
    _check_device(settings)
    assert settings.state_dir is not None
    # As each replica is to find it, wherever it is started.
    settings = settings.model_copy(update={"state_dir": settings.state_dir.resolve()})
    leases, cluster = _leases_of(settings), ""
    try:
        ray_cluster.connect("--ray", processors=settings.replicas[1] * _processors(settings))
        cluster = ray_cluster.control_address()
        return _serve(settings, origins, load, leases, listener, listening)
    finally:
        leases.close()
        if cluster and ray_cluster.is_gone(cluster):
            _end_without_ray()
        if "ray" in sys.modules:
            import ray

            ray.shutdown()  # a cluster of our own ends with that, and Serve with it


def _end_without_ray() -> NoReturn:
    """End this process at once: whatever of Ray's is called at its end waits for what is gone."""
    log.error(
        "Ray ended before this command had: a signal to `ttc serve --ray` is for that process "
        "alone, not for its group. Streams that were not saved by then go on from their last save."
    )
    logging.shutdown()
    os._exit(1)


def _serve(
    settings: Settings,
    origins: Mapping[str, Origin],
    load: Callable[[], Method],
    leases: Leases,
    listener: socket.socket,
    listening: Callable[[], None],
) -> bool:
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    serve.start(proxy_location="Disabled")
    handle = _running()
    if handle is not None and not _are_to_be_used(handle, settings, leases):
        log.warning("Replicas of other settings are ended: the command that started them is gone.")
        serve.delete(APPLICATION)
        handle = None
    is_ours = handle is None or not _are_somebodys(handle, leases)
    if handle is not None and is_ours:
        log.warning("The replicas that are there are ours now: who started them is gone.")
        handle.broadcast("have_door", leases.owner).results(timeout_s=ASKED_SECONDS)
    try:
        if handle is None:
            handle = _deploy(settings, origins, load, leases)
        fleet = Fleet(handle)

        async def end() -> bool:
            if not is_ours:
                return True
            try:
                found = await fleet.call("end", seconds=settings.drain_timeout)
            except Refused:
                return False
            return all(each is True for each in found)

        door = Door(settings, fleet, end)
        listening()
        return server.run(door.app, settings, listener, lambda: door if door.has_begun else None)
    finally:
        if is_ours and not ray_cluster.is_gone(ray_cluster.control_address()):
            with contextlib.suppress(Exception):  # it has ended already
                serve.delete(APPLICATION)


def _check_device(settings: Settings) -> None:
    """See that no one GPU is named: each replica sees but the one that Ray gives it.

    Raises:
        ReplicasError: one is.
    """
    if settings.device.startswith("cuda:"):
        raise ReplicasError(
            f"--ray gives each replica a GPU, and {settings.device} would have all on one; "
            "--device cuda, or auto."
        )


def _leases_of(settings: Settings) -> Leases:
    """Our own leases, kept as long as we live: by them others see that the replicas are somebody's.

    The folder is one that can be shared and written, before a replica fails at it.

    Raises:
        StateFolderError: it is not.
    """
    path = settings.state_dir
    assert path is not None
    try:
        # No other ever had the name: numbers of processes come again.
        name = f"door-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        leases = Leases(path, name)
    except OSError as error:
        raise StateFolderError(
            f"--state-dir {path} cannot be written to: {error.strerror}. Replicas move streams "
            "through it."
        ) from None
    try:
        folder = StateFolder(path, method=settings.method, model=settings.model, leases=leases)
        folder.close()
    except BaseException:
        leases.close()
        raise
    leases.keep_beating()
    return leases


def _running() -> "DeploymentHandle[Any] | None":
    """The replicas that are there already; what is left of some that did not start is removed."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return None
    if application.status.value in ("DEPLOY_FAILED", "DELETING", "NOT_STARTED"):
        serve.delete(APPLICATION)
        return None
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)


def _are_to_be_used(handle: "DeploymentHandle[Any]", settings: Settings, leases: Leases) -> bool:
    """Whether the replicas that are there are those that we would start; else they are nobody's.

    Raises:
        ReplicasError: they are others, and another command's; or they do not answer.
    """
    ours = digest_of(settings), leases.member.fleet
    told = _served_by(handle)
    if all((digest, fleet) == ours for digest, fleet, _ in told):
        return True
    # Whose folder is another's, of that one cannot be told here whether it lives.
    if any(fleet != leases.member.fleet or leases.member.lives(door) for _, fleet, door in told):
        raise ReplicasError(
            "The cluster has replicas of other settings; end their `ttc serve --ray`, or "
            "`serve shutdown`, first."
        )
    return False


def _are_somebodys(handle: "DeploymentHandle[Any]", leases: Leases) -> bool:
    """Whether the command lives that started replicas, or took them over, and ends them."""
    return any(leases.member.lives(door) for _, _, door in _served_by(handle))


def _served_by(handle: "DeploymentHandle[Any]") -> set[tuple[str, str, str]]:
    try:
        return set(handle.broadcast("served_by").results(timeout_s=ASKED_SECONDS))
    except Exception as error:  # of Ray's, for whatever became of them
        raise ReplicasError(
            f"The cluster's replicas do not say whose they are ({_last_line(error)}); end their "
            "`ttc serve --ray`, or `serve shutdown`, first."
        ) from error


def _deploy(
    settings: Settings,
    origins: Mapping[str, Origin],
    load: Callable[[], Method],
    leases: Leases,
) -> "DeploymentHandle[Any]":
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    fewest, most = settings.replicas
    patience = settings.ray_patience
    processors, gpus = _processors(settings), _gpus(settings)
    check_room(fewest, processors, gpus)
    scaling: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest,
                max_replicas=most,
                initial_replicas=fewest,
                target_ongoing_requests=settings.ray_queue,
                upscale_delay_s=patience,
                downscale_delay_s=PATIENCE_DOWN * patience,
                metrics_interval_s=min(10.0, patience / 2),
                look_back_period_s=patience,
            )
        }
    deployed = serve.deployment(
        name=DEPLOYMENT,
        max_ongoing_requests=MOST_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT,
        ray_actor_options={"num_cpus": processors, "num_gpus": gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,  # type: ignore[arg-type]  # a name is taken
            # A stream has one replica: no other is tried where that one is busy.
            request_router_kwargs={"num_fallback_replicas": 0},
        ),
        **scaling,
    )(RayReplica)
    bound = deployed.bind(settings, origins, load, leases.member.fleet, leases.owner)
    target = serve.RunTarget(bound, name=APPLICATION, route_prefix=None)
    try:
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_running()
    except (RuntimeError, TimeoutError) as error:
        raise ReplicasError(f"The replicas do not start: {_last_line(error)}") from None
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)


def _wait_until_running() -> None:
    """Wait for all replicas; what they wait for is told after a while.

    Raises:
        RuntimeError: they do not start; the text says why.
    """
    from ray import serve

    tell_at = time.monotonic() + TOLD_SECONDS
    while True:
        application = serve.status().applications[APPLICATION]
        deployment = application.deployments.get(DEPLOYMENT)
        said = (deployment.message if deployment else "") or application.message
        if application.status == "RUNNING":
            return
        if application.status == "DEPLOY_FAILED":
            raise RuntimeError(said)
        if time.monotonic() > tell_at:
            tell_at = time.monotonic() + TOLD_SECONDS
            states = dict(deployment.replica_states) if deployment else {}
            told = ", ".join(f"{count} {state}".lower() for state, count in states.items())
            log.warning("The replicas are not ready yet (%s). %s", told, said)
        time.sleep(LOOK_SECONDS)


def check_room(fewest: int, processors: int, gpus: int) -> None:
    """See that the cluster has room for so many replicas, which Ray else waits for without an end.

    Raises:
        ReplicasError: it has not.
    """
    room = ray_cluster.places(processors, gpus)
    if room < fewest:
        gpu = f" and {gpus} GPU" if gpus else ""
        ways = "--ray-replicas, --threads" + (" or --device cpu" if gpus else "")
        raise ReplicasError(
            f"The cluster has room for {room} of {fewest} replicas: each asks for {processors} "
            f"processors{gpu} of one machine. {ways} ask for less."
        )


def _processors(settings: Settings) -> int:
    """Processors that Ray sets aside for a replica."""
    return settings.threads or 1


def _gpus(settings: Settings) -> int:
    """GPUs that Ray sets aside for a replica, which sees no others."""
    has_gpus = ray_cluster.places(1, 1) > 0
    return int(settings.device == "cuda" or (settings.device == "auto" and has_gpus))


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
