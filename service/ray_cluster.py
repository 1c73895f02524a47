"""Ray, where it is installed: the cluster of RAY_ADDRESS, or one on this machine while we run.

Imports nothing of Ray's before `connect`, so that whoever does without it pays nothing for it.
"""

import importlib.util
import logging
import os

from ttc_core.errors import UserError

# Of the objects in Ray's own memory: requests and answers on their way between processes.
OBJECT_STORE_BYTES = 256 << 20
ADDRESS = "RAY_ADDRESS"


class RayMissing(UserError):
    """Ray is not installed; the text says how to."""


def connect(asked_by: str = "--ray") -> None:
    """Connect to the cluster that RAY_ADDRESS names; else start one here, which ends with us.

    One of our own listens on 127.0.0.1 alone: whoever reaches a cluster's ports runs code on it.
    It has no dashboard, and reports nothing to anybody.

    Args:
        asked_by: the flag that needs Ray, for the sentence.

    Raises:
        RayMissing: it is not installed. UserError: the cluster cannot be reached.
    """
    if importlib.util.find_spec("ray") is None:
        raise RayMissing(f"{asked_by} needs the extra ray: pip install 'ttc-service[ray]'.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get(ADDRESS)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"{ADDRESS} {address}" if address else "a cluster on this machine"
        raise UserError(f"Ray cannot use {where}: {str(error).splitlines()[0]}.") from error
