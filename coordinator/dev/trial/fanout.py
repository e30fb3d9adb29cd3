"""A cooperative fill among node agents that are processes of their own, told by the coordinator's own plan.

    with Fanout(tmp_path, resolved, {"node-1": Place("127.0.0.1"), …}) as fanout:
        fanout.until(lambda: …)             the coordinator ticks while the test waits
        fanout.agents["node-1"].kill()
        fanout.until_ready()                everybody who is left holds the model

There is no Kubernetes and no Ray between them. A node that does not answer is unavailable, as to the real one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from actors.errors import Failure
from actors.manifest import Resolved, storage_key
from actors.messages import Company, ModelReport, NodeName, NodeReport, Phase
from coordinator.dev.trial.agent_process import AgentProcess
from coordinator.dev.trial.builders import World, a_cache, a_group, a_node, a_world
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet.interface import AgentView
from coordinator.plan.plan import plan
from coordinator.plan.snapshot import Resolution

TICK_S = 0.1
LINK_BYTES_PER_S = 25 << 20
"""Said to be of every node, so that chunks are small."""
GONE = Failure("AgentUnavailable", "it does not answer")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an agent runs: the address of its peer port (port 0: a free one), and what is put before its command."""

    host: str
    port: int = 0
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Fanout:
    """`late` are members of the node group whose agents do not run until `start`.

    `strangers`: further nodes, by name the address of what answers as their peer port; they report nothing else.
    """

    def __init__(
        self,
        folder: Path,
        resolved: Resolved,
        places: Mapping[str, Place],
        *,
        late: Sequence[str] = (),
        strangers: Mapping[str, str] | None = None,
    ) -> None:
        self.uri = resolved.manifest.source.uri
        self.total_bytes = resolved.manifest.total_bytes
        self.agents: dict[str, AgentProcess] = {}
        self.company: Company | None = None
        self.deaf: set[str] = set()
        """Agents that are not asked, because they would not answer: as the coordinator's own bound on a call has it."""
        self._folder = folder
        self._places = places
        self._late = late
        cache = a_cache("model", self.uri)
        self._strangers = dict(strangers or {})
        self._world: World = a_world(cache, a_group(), *map(a_node, [*places, *self._strangers]))
        self._builder, self._cache = cache, cache.key
        self.renew(resolved)

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(self._places)) as pool:
                list(pool.map(self.start, [name for name in self._places if name not in self._late]))
            self.tick()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with ThreadPoolExecutor(len(self.agents)) as pool:
            list(pool.map(AgentProcess.close, self.agents.values()))

    def start(self, name: str) -> None:
        """Its agent runs, on the disk it had."""
        if name in self.agents:
            self.agents[name].close()
        place = self._places[name]
        (self._folder / name / "models").mkdir(parents=True, exist_ok=True)
        environment = {
            "LOCALMODEL_HOST_ROOT": str(self._folder / name),
            "LOCALMODEL_HEADROOM": "0",
            "LOCALMODEL_LINK": str(LINK_BYTES_PER_S),
            "LOCALMODEL_PEER_HOST": place.host,
            "LOCALMODEL_PEER_PORT": str(place.port),
            **place.environment,
        }
        agent = AgentProcess(name, environment, prefix=place.prefix)
        agent.reconcile(None)  # returns when it is there
        self.agents[name] = agent

    def renew(self, resolved: Resolved) -> None:
        """The source was resolved again: this is what agents are told from now on."""
        self._world.resolutions[self._cache] = Resolution(resolved)

    def revise(self, resolved: Resolved) -> None:
        """`spec.revision` of the cache was edited to what this is resolved for."""
        self._builder.with_spec(revision=resolved.manifest.source.revision)
        self.renew(resolved)

    def folder(self, name: str) -> Path:
        return self._folder / name / "models/models" / storage_key(self.uri)

    def tick(self) -> None:
        """One turn of the coordinator: a plan from what is known, and what the agents answer to it."""
        if len(self._world.agents) >= len(self.agents):  # nobody owns all, because nobody else is there yet
            for name, address in self._strangers.items():
                report = NodeReport(
                    NodeName(name), "stranger", "0", 0, peer_address=address, link_bytes_per_s=LINK_BYTES_PER_S
                )
                self._world.agents[name] = AgentView(report, time.time())
        snapshot = self._world.snapshot()
        companies = {self.company.fill: self.company} if self.company is not None else {}
        made = plan(replace(snapshot, companies=companies, secret=b"fanout"), time.time())
        self.company = next(iter(made.companies.values()), None)
        for name, agent in self.agents.items():
            if name in self.deaf:
                self._world.agents[name] = replace(self._world.agents[name], failure=GONE)
                continue
            try:
                desired = made.desired.get(NodeName(name))
                self._world.agents[name] = AgentView(agent.reconcile(desired), time.time())
            except (OSError, EOFError):
                self._world.agents[name] = replace(self._world.agents[name], failure=GONE)

    def model(self, name: str) -> ModelReport | None:
        """As it was last reported."""
        view = self._world.agents.get(name)
        models = view.report.models if view is not None and view.report is not None else ()
        return next(iter(models), None)

    def models(self) -> dict[str, ModelReport | None]:
        return {name: self.model(name) for name in self.agents}

    def done(self, name: str) -> int:
        model = self.model(name)
        return model.bytes_done if model is not None else 0

    def until(self, fact: Callable[[], object], *, timeout_s: float = 60.0) -> None:
        """The coordinator ticks until `fact` holds."""

        def holds() -> object:
            self.tick()
            return fact()

        eventually(holds, timeout_s=timeout_s, every_s=TICK_S, seen=self.models)

    def until_ready(self, *names: str, timeout_s: float = 90.0) -> dict[str, ModelReport]:
        """The reports of these nodes (default: of all whose agents are alive), once they hold the model."""
        wanted = names or tuple(name for name, agent in self.agents.items() if agent.running)

        def ready() -> bool:
            found = [self.model(name) for name in wanted]
            return all(model is not None and model.phase is Phase.READY for model in found)

        self.until(ready, timeout_s=timeout_s)
        return {name: model for name in wanted if (model := self.model(name)) is not None}
