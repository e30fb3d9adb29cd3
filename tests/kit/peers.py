"""Several real node agents in one process, on folders of their own, that fill together; and who tells them so."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from actors.agent.agent import NodeAgent
from actors.agent.settings import AgentSettings
from actors.manifest import Resolved, storage_key
from actors.messages import Company, DesiredModel, DesiredRoot, DesiredState, Member, ModelReport, NodeName, Phase
from coordinator.dev.trial.waiting import eventually

OWNER = "cluster-1"
MIB = 1 << 20
TOKEN = "a secret"


class Peer:
    """One node."""

    def __init__(self, host_root: Path, name: str, **settings: object) -> None:
        self.name = NodeName(name)
        self.host_root = host_root
        (host_root / "models").mkdir(parents=True, exist_ok=True)
        known = {
            "headroom_bytes": 0,
            "chunk_backoff_first_s": 0.05,
            "chunk_backoff_max_s": 0.5,
            "backoff_first_s": 0.1,
            "backoff_max_s": 0.5,
            "peer_host": "127.0.0.1",
            **settings,
        }
        self.agent = NodeAgent(self.name, AgentSettings(host_root=host_root, **known), rng=random.Random(name))  # type: ignore[arg-type]  # by name

    def member(self, **changes: object) -> Member:
        report = self.agent.report()
        member = Member(self.name, report.incarnation, None, report.peer_address or "")
        return replace(member, **changes)  # type: ignore[arg-type]  # by name

    def model(self, uri: str) -> ModelReport | None:
        key = storage_key(uri)
        return next((each for each in self.agent.report().models if each.key == key), None)

    def folder(self, uri: str) -> Path:
        return self.host_root / "models" / "models" / storage_key(uri)


def a_company(members: Sequence[Member], *, chunk_bytes: int = 256 << 10, token: str = TOKEN) -> Company:
    return Company("fill-1", chunk_bytes, tuple(sorted(members, key=lambda each: each.name)), token)


def wants(resolved: Resolved | None, company: Company | None, uri: str) -> DesiredState:
    assert resolved is not None
    model = DesiredModel(
        storage_key(uri),
        "/models",
        resolved.manifest.source,
        resolved.name,
        company=company.name if company is not None else None,
    )
    companies = {company.name: company} if company is not None else {}
    return DesiredState(OWNER, (DesiredRoot("/models"),), (model,), {resolved.name: resolved}, companies)


def all_ready(peers: Sequence[Peer], uri: str, *, timeout_s: float = 60.0) -> list[ModelReport]:
    """The reports, once the model is Ready everywhere."""

    def ready() -> list[ModelReport] | None:
        found = [report for peer in peers if (report := peer.model(uri)) is not None and report.phase is Phase.READY]
        return found if len(found) == len(peers) else None

    found = eventually(ready, timeout_s=timeout_s, every_s=0.02, seen=lambda: [peer.model(uri) for peer in peers])
    assert found is not None
    return found


@contextmanager
def running(*peers: Peer) -> Iterator[None]:
    try:
        yield
    finally:
        for peer in peers:
            peer.agent.close(10)
