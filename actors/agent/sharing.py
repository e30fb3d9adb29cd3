"""Committed copies are handed out to the nodes that fill the same model."""

from __future__ import annotations

import logging

from actors.agent.diff import satisfies
from actors.agent.state import State
from actors.peers.exchange import Exchange

_log = logging.getLogger(__name__)


def share(state: State, exchange: Exchange) -> None:
    """Each company that the goal names can read from this node what is committed here, or is being filled."""
    goal = state.goal
    exchange.keep(goal.companies.values())
    for place, model in goal.models.items():
        company, root, marker = goal.company_of(model), state.roots.get(place.root), state.roots.copy(place)
        if company is None or marker is None or root is None or root.store is None:
            continue
        if place in state.tasks:
            continue
        try:
            if satisfies(marker, model):
                with root.store.opened(place.key) as folder:
                    exchange.seed(company, marker.manifest, folder.here)
            elif model.hold and (version := root.beside.find(model, goal.source_of(model))) is not None:
                with root.store.opened_version(version.name) as folder:
                    exchange.seed(company, version.marker.manifest, folder.here)
        except OSError as error:
            _log.warning("cannot serve a model", extra={"key": place.key, "error": str(error)})
