"""Why a node agent gives no report, as far as it can be told, and whether anybody has to act.

    it ended, or cannot be reached          AgentRestarting     a deleted pod, a drained node, a new version: all of
                                                                these pass, and are no failure
    for longer than RESTART_S               AgentUnavailable    since when
    several times within OFTEN_S            AgentDied           it will again: how often, and where to look
    its own code raised                     AgentError          with what it raised
    no Ray node on the Kubernetes node      NoRayNode           where one was: for longer than RESTART_S
    the Kubernetes node is the reason       NodeNotReady, NodeCordoned      whatever the above say

Nothing of Ray is in a message: its ids and traces are in the coordinator's log. The words stay the same while the state
does, because every new message is a write to the cluster. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from actors.errors import Failure
from coordinator.fleet.interface import NODE_LABEL, node_label
from coordinator.kube.quantity import format_duration

STARTING = Failure("AgentStarting", "the node agent is being started")
RESTARTING = Failure("AgentRestarting", "the node agent has ended or cannot be reached, and is started again")
OUTDATED = Failure("AgentOutdated", "the node agent is of another version and is being replaced")
RESTART_S = 60.0
OFTEN, OFTEN_S = 3, 600.0

_RAYS = re.compile(r"\b(ray::|raylet|gcs|ray\w*error|actor\w*error|actor_id|[0-9a-f]{16,})", re.IGNORECASE)


def is_often(ended: Sequence[float], now: float) -> bool:
    return sum(now - at < OFTEN_S for at in ended) >= OFTEN


def away(lost_for_s: float, since: str, ended: Sequence[float], now: float) -> Failure:
    """Of an agent that was there. `ended`: when it did, by the clock of `now`; `since` is for people."""
    if is_often(ended, now):
        message = f"the node agent has ended {OFTEN} times or more within {format_duration(OFTEN_S)}"
        return Failure("AgentDied", f"{message}: look into the log of the Ray worker on this node")
    return RESTARTING if lost_for_s < RESTART_S else silent(since)


def silent(since: str) -> Failure:
    return Failure(
        "AgentUnavailable",
        f"the node agent has not answered since {since}: does its Ray worker run, and does the network reach it?",
    )


def raised(error: str, *, starting: bool) -> Failure:
    """Of an agent whose own code failed with this, in one line."""
    verb = "cannot start" if starting else "failed"
    text = error if error and not _RAYS.search(error) else "the log of the Ray worker on this node says why"
    return Failure("AgentError", f"the node agent {verb}: {text}")


def no_ray_node(node: str) -> Failure:
    label = f"{NODE_LABEL}={node_label(node)}"  # type: ignore[arg-type]  # a node's name, as a string
    return Failure(
        "NoRayNode",
        f"no Ray worker runs on node {node} (none carries the label {label}): is its pod starting, and does the"
        " DaemonSet localmodel-agent select the node and tolerate its taints?",
    )


def no_ray(address: str) -> Failure:
    return Failure("RayUnavailable", f"the Ray head at {address} cannot be reached; agents go on with what they know")
