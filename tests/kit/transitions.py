"""What a cache and its nodes said one after the other, watched while something happens to the cluster.

    with watching(laptop, "sample") as said:
        laptop.cluster.ray.stop_node("node-1")
    said.of_node["node-1"]    [None, "AgentRestarting", None]: reasons, each as long as it stood
    said.ready                ["False", "True"]

Objects are looked at ten times a second; a reason that is written for less than that may be missed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from coordinator.kube.interface import KubeError
from coordinator.plan.snapshot import CACHES, LOCAL_NODES
from tests.kit.laptop import Laptop

EVERY_S = 0.1


@dataclass
class Said:
    """Each list holds what was said in its order, without repetitions of the same. `degraded` has reasons, "" for none.

    `of_node` has the reason of the node's copy, None for none; `agents` whether the node's agent was ready.
    """

    ready: list[str] = field(default_factory=list)
    degraded: list[str] = field(default_factory=list)
    of_node: dict[str, list[str | None]] = field(default_factory=dict)
    agents: dict[str, list[bool]] = field(default_factory=dict)

    def look(self, laptop: Laptop, name: str) -> None:
        try:
            cache = next((each for each in laptop.kube.list(CACHES)[0] if each["metadata"]["name"] == name), {})
            locals_ = laptop.kube.list(LOCAL_NODES)[0]
        except (KubeError, OSError):  # the API server may be what is struck
            return
        conditions = {each["type"]: each for each in cache.get("status", {}).get("conditions", ())}
        if conditions:
            _add(self.ready, conditions["Ready"]["status"])
            degraded = conditions["Degraded"]
            _add(self.degraded, degraded["reason"] if degraded["status"] == "True" else "")
        for local in locals_:
            node, status = local["metadata"]["name"], local.get("status", {})
            for each in status.get("models", ()):
                if each["name"] == name:
                    _add(self.of_node.setdefault(node, []), each.get("reason"))
            if "agent" in status:
                _add(self.agents.setdefault(node, []), bool(status["agent"].get("ready")))


def _add(said: list[Any], word: Any) -> None:
    if not said or said[-1] != word:
        said.append(word)


@contextmanager
def watching(laptop: Laptop, name: str) -> Iterator[Said]:
    said, stop = Said(), threading.Event()
    own = Laptop(laptop.cluster)

    def watch() -> None:
        while not stop.wait(EVERY_S):
            said.look(own, name)
        said.look(own, name)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield said
    finally:
        stop.set()
        thread.join()
        own.kube.close()
