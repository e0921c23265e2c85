"""The verbs of `archer.engine.base.Engine` on a Ray cluster: the only folder that imports Ray.

    engine    the verbs, seen from the process that runs the loop
    session   a Ray cluster to run on, and processes placed on it
    guard     a process beside a cluster of our own, that ends what a killed run leaves behind
    pulse     who is still alive
    rank      a process that holds a shard of the learner
    samplers  those who sample in processes of their own: who is lost, who takes over
    replica   a model that samples, in a process of its own or beside a shard of the learner
    judges    verifiers on all machines
    fsdp      a model sharded over ranks: its whole tensors, and its checkpoints
    balance   which rank takes which sequences
    hosts     a hostfile: which machines there are
    up        `archer cluster`: Ray on those machines, seen from where the command is given
    node      and what of it is done on each of them

Nothing here knows the loop, and the loop knows nothing of this: one `Learner`, one `Sampler`, one
recipe, wherever they run.
"""

import os


def named_cluster() -> str | None:
    """The cluster that RAY_ADDRESS names; None for one of the run's own, as Ray itself reads it."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


# Read by Ray when it is imported. Whoever reaches a cluster's ports may run code on it, so ours
# asks for a token (Ray's own, in ~/.ray/auth_token); of one that is named, `session` finds out.
# Nothing is reported to Ray's makers. A thread that still asks when a cluster was left must not
# begin another one.
AUTH_MODE_GIVEN = "RAY_AUTH_MODE" in os.environ
if named_cluster() is None:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
