"""A model's numbers add up, and go by one name each."""

from __future__ import annotations

from dataclasses import fields

import pytest

from actors.manifest import NodeName, StorageKey
from actors.messages import ModelReport, Phase
from actors.transferred import AMOUNTS, BY_NODE, CAMEL, NAMES, Transferred, total
from coordinator.api.resources import CacheBytes, LocalModelCacheStatus, NodeModelDetail

A, B = NodeName("a"), NodeName("b")


def distinct(factor: int = 1) -> Transferred:
    """Every number is another one."""
    amounts = {name: factor * (place + 1) for place, name in enumerate(AMOUNTS)}
    by_node = {name: {A: factor * (place + 10)} for place, name in enumerate(BY_NODE)}
    return Transferred(**amounts, **by_node)  # type: ignore[arg-type]  # by the kind of each field


def a_report(transferred: Transferred) -> ModelReport:
    return ModelReport(StorageKey("0" * 16), Phase.READY, "selection", **transferred.numbers)


def test_every_number_is_of_one_kind() -> None:
    assert (*AMOUNTS, *BY_NODE) == NAMES == tuple(field.name for field in fields(Transferred))


def test_every_number_is_added_up_also_of_reports() -> None:
    assert distinct() + distinct(2) == distinct(3)
    assert total([a_report(distinct()), a_report(distinct(3)), distinct()]) == distinct(5)
    assert total([]) == Transferred()


def test_nodes_are_added_up_each_for_itself() -> None:
    both = Transferred(wrong_peers={A: 1, B: 2}) + Transferred(wrong_peers={B: 3})
    assert both == Transferred(wrong_peers={A: 1, B: 5})


def test_a_marker_has_every_number_that_is_not_0_and_the_bytes_that_every_copy_has() -> None:
    assert Transferred.from_json(distinct().to_json()) == distinct()
    assert Transferred().to_json() == {"bytesFromOrigin": 0, "bytesFromPeers": 0}
    assert Transferred.from_json({}) == Transferred()


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_told_of_a_node_and_of_a_cache(name: str) -> None:
    assert NodeModelDetail.model_fields[name].alias == CAMEL[name]
    short = name.removeprefix("bytes_")
    assert short in CacheBytes.model_fields or name in LocalModelCacheStatus.model_fields
