"""Replicas started on Ray Serve, our server before them, and the end of both."""

import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from service import logs, ray_cluster, server
from service.connection import SPARE_CONNECTIONS
from service.errors import Refused
from service.leases import Leases
from service.replicas import APPLICATION, DEPLOYMENT
from service.replicas.door import Door
from service.replicas.fleet import Fleet
from service.replicas.replica import Replica, digest_of
from service.settings import Origin, Settings
from service.state_folder import StateFolder, StateFolderError
from ttc_core.errors import UserError
from ttc_core.methods import Method

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger(__name__)

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# How often Ray looks whether a replica lives, which is how long its streams wait where it does not.
HEALTH_SECONDS, HEALTH_TIMEOUT = 1.0, 30.0
# How often a replica that is to end looks whether all its requests are answered.
DRAIN_LOOK_SECONDS = 0.1
# A replica goes when the load has been lower for so many times as long as it has to be higher.
PATIENCE_DOWN = 10


class RayReplica(Replica):
    """A replica as Ray Serve runs it, in a process of its own."""

    async def __init__(  # type: ignore[misc]  # Ray Serve awaits it
        self, settings: Settings, origins: Mapping[str, Origin], load: Callable[[], Method]
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
        super().__init__(settings, origins, load, name, others)
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
    and stay.

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
    _check_folder(settings)
    most = settings.replicas[1]
    ray_cluster.connect("--ray", processors=most * _processors(settings))
    import ray
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        serve.start(proxy_location="Disabled")
        handle = _running()
        joined = handle is not None
        if handle is None:
            handle = _deploy(settings, origins, load)
        elif set(handle.broadcast("settings_digest").results(timeout_s=30)) != {
            digest_of(settings)
        }:
            raise ReplicasError(
                "The cluster has replicas of other settings; end their `ttc serve --ray`, or "
                "`serve shutdown`, first."
            )
        fleet = Fleet(handle)

        async def end() -> bool:
            if joined:
                return True
            try:
                found = await fleet.call("end", seconds=settings.drain_timeout)
            except Refused:
                return False
            return all(each is True for each in found)

        door = Door(settings, fleet, end)
        listening()
        well = server.run(door.app, settings, listener, lambda: door if door.has_begun else None)
        if not joined:
            serve.delete(APPLICATION)
        return well
    finally:
        # A cluster of our own ends with that, and Serve with it.
        ray.shutdown()


def _check_folder(settings: Settings) -> None:
    """See that the folder can be shared and written, before a replica fails at it."""
    assert settings.state_dir is not None
    path = settings.state_dir
    try:
        leases = Leases(path, f"door-{socket.gethostname()}-{os.getpid()}")
    except OSError as error:
        raise StateFolderError(
            f"--state-dir {path} cannot be written to: {error.strerror}. Replicas move streams "
            "through it."
        ) from None
    try:
        folder = StateFolder(path, method=settings.method, model=settings.model, leases=leases)
        folder.close()
    finally:
        leases.close()


def _running() -> "DeploymentHandle[Any] | None":
    """The replicas that are there already."""
    from ray import serve

    if APPLICATION not in serve.status().applications:
        return None
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)


def _deploy(
    settings: Settings, origins: Mapping[str, Origin], load: Callable[[], Method]
) -> "DeploymentHandle[Any]":
    from ray import serve
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    fewest, most = settings.replicas
    patience = settings.ray_patience
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
        # Our queue says when it is full: Ray's would have requests wait without an end.
        max_ongoing_requests=settings.max_connections + SPARE_CONNECTIONS,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        graceful_shutdown_wait_loop_s=DRAIN_LOOK_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=HEALTH_TIMEOUT,
        ray_actor_options={"num_cpus": _processors(settings), "num_gpus": _gpus(settings)},
        request_router_config=RequestRouterConfig(
            request_router_class=ROUTER,  # type: ignore[arg-type]  # a name is taken
            # A stream has one replica: no other is tried where that one is busy.
            request_router_kwargs={"num_fallback_replicas": 0},
        ),
        **scaling,
    )(RayReplica)
    try:
        serve.run(deployed.bind(settings, origins, load), name=APPLICATION, route_prefix=None)
    except (RuntimeError, TimeoutError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ReplicasError(f"The replicas do not start: {lines[-1] if lines else error}") from None
    return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)


def _processors(settings: Settings) -> int:
    """Processors that Ray sets aside for a replica."""
    return settings.threads or 1


def _gpus(settings: Settings) -> int:
    import torch

    wanted = settings.device == "auto" or settings.device.startswith("cuda")
    return int(wanted and torch.cuda.is_available())
