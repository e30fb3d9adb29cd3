"""The goal of an agent whose coordinator has just begun, and knows less than the one before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.agent.state import Goal
from actors.manifest import ModelSource, storage_key
from actors.messages import DesiredModel, DesiredState

SOURCE = ModelSource("hf://models/a")
FILLING = DesiredModel(key=storage_key(SOURCE.uri), root="/models", source=SOURCE, resolved="r1", company="c1")


@pytest.mark.parametrize(
    ("asked", "company"),
    [
        (replace(FILLING, resolved=None, company=None), "c1"),
        (replace(FILLING, company=None), None),
        (replace(FILLING, resolved=None, company="c2"), "c2"),
        (replace(FILLING, source=replace(SOURCE, revision="v2"), resolved=None, company=None), None),
    ],
    ids=["it is not resolved yet", "it is, and the node fills alone", "another company", "other files"],
)
def test_a_fill_stays_in_its_company_until_a_coordinator_knows_better(asked: DesiredModel, company: str | None) -> None:
    goal = Goal()
    for model in (FILLING, asked, asked):
        goal.take(DesiredState(owner="o", models=(model,)))
    assert goal.models[asked.place].company == company
