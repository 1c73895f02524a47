"""Ray, where it is installed: the cluster of RAY_ADDRESS, or one on this machine while we run.

Imports nothing of Ray's before `connect`, so that whoever does without it pays nothing for it.
"""

import importlib.util
import logging
import os
import secrets
import socket
import sys

from ttc_core.errors import UserError

log = logging.getLogger(__name__)

# Of the objects in Ray's own memory: requests and answers on their way between processes.
OBJECT_STORE_BYTES = 256 << 20
ADDRESS, AUTHENTICATION, TOKEN = "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
# Ray gives its processes half a minute to start, too little on a machine that has other work.
ATTEMPTS = 3
# How long whether it is there is looked for.
LOOK_SECONDS = 5.0


class RayMissing(UserError):
    """Ray is not installed; the text says how to."""


def require(asked_by: str) -> None:
    """See that Ray is installed.

    Args:
        asked_by: the flag that needs it, for the sentence.

    Raises:
        RayMissing: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise RayMissing(f"{asked_by} needs the extra ray: pip install 'ttc-service[ray]'.")


def places(processors: int, gpus: int) -> int:
    """How many processes the cluster has room for that each ask for so much; machines come and go.

    What others have taken of it counts as room.
    """
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    has = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(
        min(
            int(each.get("CPU", 0) // processors),
            int(each.get("GPU", 0) // gpus) if gpus else sys.maxsize,
        )
        for each in has
    )


def connect(asked_by: str = "--ray", processors: int | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names; else start one here, which ends with us.

    Whoever may call a cluster runs code on it, and some of Ray's ports are open on all of a
    machine's addresses, whatever it is told. So one of our own is called with a token, which only
    we and its processes know. It has no dashboard, and reports nothing to anybody.

    Args:
        asked_by: the flag that needs Ray, for the sentence.
        processors: that a cluster of our own counts; None, or fewer than there are: those there
            are. It only keeps a count: what is asked for here runs, on fewer more slowly.

    Raises:
        RayMissing: it is not installed. UserError: the cluster cannot be reached.
    """
    require(asked_by)
    # Read when ray is imported, and by the processes that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # its own 15 is for what may wait
    address = os.environ.get(ADDRESS)
    if not address and AUTHENTICATION not in os.environ:
        # Ray by itself would keep one in the home directory, which need not be writable.
        os.environ |= {AUTHENTICATION: "token", TOKEN: secrets.token_hex(32)}
    import ray

    if ray.is_initialized():
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if address:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(processors or 0, os.cpu_count() or 1),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.WARNING,
                    object_store_memory=OBJECT_STORE_BYTES,
                    _node_ip_address="127.0.0.1",
                )
            return
        except Exception as error:  # where a cluster does not start in time it raises just that
            ray.shutdown()
            where = f"{ADDRESS} {address}" if address else "a cluster on this machine"
            said = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            if address or attempt == ATTEMPTS:
                raise UserError(f"Ray cannot use {where}: {said}.") from error
            log.warning("Ray does not start, and is tried again: %s.", said)


def control_address() -> str:
    """Where the control service of the cluster is that we are connected to, HOST:PORT."""
    import ray

    found: str = ray.get_runtime_context().gcs_address
    return found


def is_gone(address: str) -> bool:
    """Whether a cluster's control service is no more; calls of Ray's wait a minute for it."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_SECONDS).close()
    except OSError:
        return True
    return False
