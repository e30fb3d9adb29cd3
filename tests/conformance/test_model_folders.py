"""KServe's specs of the functions by which its node agent looks at folders of models, removes and makes them.

    F1  hasModelFolder: missing, there, not permitted
    F2  removeModel: missing is fine, removed, not permitted
    F3  ensureModelRootFolderExists: made, made again, not permitted

They are not functions here, so a real agent is looked at, on a real disk, with the rights of another user.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.agent.agent import NodeAgent
from actors.manifest import ModelSource, Resolved
from actors.messages import DesiredState, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.disks import somebody_else
from tests.kit.nodes import KEY, NOTHING, URI, Node, a_removal, model, ordering, until, until_gone, wants

SAMPLE_BYTES = 1 << 20


@pytest.fixture
def resolved(sample: Path) -> Iterator[Resolved]:
    with Origin({REPO: sample}) as origin:
        yield resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))


def told(node: Node, desired: DesiredState) -> NodeAgent:
    agent = node.agent()
    agent.reconcile(desired)
    return agent


def test_f1_a_folder_that_is_missing_is_filled_and_one_that_is_there_is_found(node: Node, resolved: Resolved) -> None:
    agent = told(node, NOTHING)
    assert model(agent.report()) is None
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.close()
    found = node.agent()  # another, which has been told nothing
    found.reconcile(NOTHING)
    eventually(lambda: model(found.report()), seen=found.report)


def test_f1_f3_where_nothing_may_be_written_the_reason_says_so(node: Node, resolved: Resolved) -> None:
    with somebody_else(node.root):
        agent = told(node, wants(resolved))
        eventually(lambda: agent.report().roots[0].failure, seen=agent.report)
        (root,) = agent.report().roots
        assert root.failure is not None
        assert (root.failure.reason, str(node.root) in root.failure.message) == ("DiskPermissionDenied", True)
        agent.close()


def test_f2_what_is_missing_is_no_failure_and_what_is_there_goes(node: Node, resolved: Resolved) -> None:
    agent = told(node, ordering(NOTHING, a_removal(KEY)))
    assert (model(agent.report()), agent.report().roots[0].failure) == (None, None)
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    until_gone(agent)
    assert not node.folder().exists()


def test_f2_what_may_not_be_removed_stays_and_is_reported(node: Node, resolved: Resolved) -> None:
    agent = told(node, wants(resolved))
    until(agent, Phase.READY)
    with somebody_else(node.folder().parent):
        agent.reconcile(ordering(NOTHING, a_removal(KEY)))
        assert model(agent.report()) is not None
    assert node.folder().is_dir()
    agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    until_gone(agent)


def test_f3_the_root_is_made_and_made_again_without_harm(node: Node, resolved: Resolved) -> None:
    assert not node.folder().parent.exists()
    for _ in range(2):
        agent = told(node, wants(resolved))
        until(agent, Phase.READY)
        agent.close()
    assert [folder.name for folder in node.folder().parent.iterdir()] == [KEY]
