"""Replicas of the service on Ray Serve: each stream is one replica's, which alone has its state.

door        answers HTTP on our address as a single process does, and hands requests on
naming      whose stream a request is of, wherever its name stands
fleet       hands a request to the replica of its stream, or to all
replica     the whole application in a process of its own, called in process
ownership   which streams a replica has, takes over and hands over: `service.leases`
merging     many replicas' answers made one
sight       what the live page shows of them all
deploying   starts and ends all of it
"""

APPLICATION, DEPLOYMENT = "ttc", "replica"
"""Their names at Ray Serve."""
ALL_READY_SECONDS = 5.0
"""How long what all replicas are asked may take."""
