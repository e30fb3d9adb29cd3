"""A version that is held back lies beside the copy in place, complete, and takes its place by a rename when it may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.agent import NodeAgent
from actors.errors import SignatureInvalid
from actors.manifest import Manifest, Resolved
from actors.messages import DesiredState, ModelReport, Phase
from actors.signatures import check_signature, load_check
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.versions import at_revision, moved_bytes, next_version
from coordinator.dev.trial.waiting import eventually
from tests.kit import damage
from tests.kit.nodes import Node, model, same_bytes, until, wants

SAMPLE_BYTES = 1 << 20


def served(origin: Origin) -> int:
    return int(origin.stats()["bytes"])


def reported(agent: NodeAgent, goal: DesiredState, fact: Callable[[ModelReport], bool]) -> ModelReport:
    """The model's report, once it is so."""
    agent.reconcile(goal)

    def found() -> ModelReport | None:
        said = model(agent.report())
        return said if said is not None and fact(said) else None

    said = eventually(found, timeout_s=20, every_s=0.01, seen=agent.report)
    assert said is not None
    return said


def is_at(resolved: Resolved) -> Callable[[ModelReport], bool]:
    return lambda said: said.phase is Phase.READY and said.revision == resolved.manifest.revision


def has_prefetched(said: ModelReport) -> bool:
    return said.prefetched


def held(resolved: Resolved) -> DesiredState:
    return wants(resolved, hold=True)


def test_what_is_held_back_lies_beside_until_it_may_take_the_place(
    node: Node, origin: Origin, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    agent = node.agent()
    reported(agent, wants(first), is_at(first))
    said = reported(agent, held(second), has_prefetched)
    assert said.earlier is not None
    assert (said.earlier.revision, said.revision) == (first.manifest.revision, second.manifest.revision)
    assert [each.revision for each in said.beside] == [second.manifest.revision]
    assert same_bytes(node.folder(), sample)
    before = served(origin)
    said = reported(agent, wants(second), is_at(second))
    assert same_bytes(node.folder(), newer)
    assert served(origin) == before
    assert [each.revision for each in said.beside] == [first.manifest.revision]


def test_an_agent_that_starts_anew_knows_what_was_prefetched(
    node: Node, origin: Origin, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    agent = node.agent()
    reported(agent, wants(first), is_at(first))
    reported(agent, held(second), has_prefetched)
    agent.close()
    before, again = served(origin), node.agent()
    reported(again, held(second), has_prefetched)
    assert same_bytes(node.folder(), sample)
    reported(again, wants(second), is_at(second))
    assert same_bytes(node.folder(), newer)
    assert served(origin) == before


def test_what_was_prefetched_and_is_not_wanted_any_more_goes(node: Node, first: Resolved, second: Resolved) -> None:
    agent = node.agent()
    reported(agent, wants(first), is_at(first))
    reported(agent, wants(second), is_at(second))
    reported(agent, held(first), has_prefetched)
    said = reported(agent, wants(second, keep=0), lambda said: is_at(second)(said) and not said.beside)
    assert said.earlier is None
    eventually(lambda: node.left_behind() == [], timeout_s=10)


@pytest.mark.parametrize(("keep", "expected"), [(0, 0), (1, 1), (2, 2), (None, 1)])
def test_as_many_versions_stay_as_are_asked_for(
    node: Node,
    origin: Origin,
    first: Resolved,
    second: Resolved,
    sample: Path,
    tmp_path: Path,
    keep: int | None,
    expected: int,
) -> None:
    agent = node.agent()
    newest = next_version(sample, tmp_path / "newest", changed_part=0.1)
    third = at_revision(origin, origin.repos[REPO].push(newest))
    for resolved in (first, second):
        reported(agent, wants(resolved, keep=keep), is_at(resolved))
    said = reported(agent, wants(third, keep=keep), is_at(third))
    commits = [second.manifest.revision, first.manifest.revision]
    assert [each.revision for each in said.beside] == commits[:expected]


def test_a_node_that_has_nothing_in_place_holds_nothing_back(node: Node, second: Resolved, newer: Path) -> None:
    reported(node.agent(), held(second), is_at(second))
    assert same_bytes(node.folder(), newer)


def test_a_damaged_copy_does_not_stay_because_its_successor_is_held_back(
    node: Node, first: Resolved, second: Resolved, newer: Path
) -> None:
    agent = node.agent()
    reported(agent, wants(first), is_at(first))
    agent.close()
    damage.cut(node.folder() / "config.json")
    reported(node.agent(), held(second), is_at(second))
    assert same_bytes(node.folder(), newer)


def test_a_copy_of_the_same_request_is_replaced_where_another_content_is_named(
    node: Node, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    """As when a branch has moved: the request is the same."""
    agent, source = node.agent(), first.manifest.source
    moved = replace(second, manifest=replace(second.manifest, source=source))
    reported(agent, wants(first, version=first.manifest.digest), is_at(first))
    reported(agent, wants(moved, version=moved.manifest.digest, hold=True), has_prefetched)
    assert same_bytes(node.folder(), sample)
    reported(agent, wants(moved, version=moved.manifest.digest), is_at(second))
    assert same_bytes(node.folder(), newer)
    reported(agent, wants(first, version=first.manifest.digest), is_at(first))
    assert same_bytes(node.folder(), sample)


def test_a_version_of_the_wrong_digest_leaves_the_other_in_service(
    node: Node, first: Resolved, second: Resolved, sample: Path
) -> None:
    agent = node.agent()
    reported(agent, wants(first, expected_digest=first.manifest.digest), is_at(first))
    agent.reconcile(wants(second, expected_digest="sha256:" + "0" * 64))
    said = until(agent, Phase.FAILED, reason="DigestMismatch")
    assert said.earlier is not None
    assert said.earlier.revision == first.manifest.revision
    assert same_bytes(node.folder(), sample)


def unsigned(folder: Path, manifest: Manifest) -> None:
    if not (folder / "model.sig").exists():
        raise ValueError("model.sig is missing")


def broken(folder: Path, manifest: Manifest) -> None:
    raise OSError("no keys")


def test_a_version_that_is_not_signed_leaves_the_other_in_service(
    node: Node, first: Resolved, second: Resolved, sample: Path
) -> None:
    agent = node.agent()
    reported(agent, wants(first), is_at(first))
    agent.close()
    strict = node.agent(signature_check=unsigned)
    strict.reconcile(wants(second))
    said = until(strict, Phase.FAILED, reason="SignatureInvalid")
    assert said.failure is not None
    assert "model.sig is missing" in said.failure.message
    assert said.earlier is not None
    assert said.earlier.revision == first.manifest.revision
    assert same_bytes(node.folder(), sample)


def test_a_check_of_signatures_decides_and_one_that_fails_accepts_nothing(first: Resolved, tmp_path: Path) -> None:
    check_signature(tmp_path, first.manifest, None)
    for check, said in ((unsigned, "model.sig is missing"), (broken, "the check failed: OSError: no keys")):
        with pytest.raises(SignatureInvalid, match=said):
            check_signature(tmp_path, first.manifest, check)
    (tmp_path / "model.sig").touch()
    check_signature(tmp_path, first.manifest, unsigned)


def test_a_check_of_signatures_is_named_by_module_and_function() -> None:
    assert load_check("") is None
    assert load_check("os.path:join") is not None
    for wrong in ("os.path", "os.path:", ":join", "no.such:module", "os:sep"):
        with pytest.raises(ValueError, match="LOCALMODEL_SIGNATURE_CHECK"):
            load_check(wrong)


def test_a_version_that_does_not_fit_beside_the_other_says_so_before_the_first_byte(
    node: Node, origin: Origin, first: Resolved, second: Resolved, newer: Path
) -> None:
    """It needs the room of what changed, and of the small files, which are not looked at for that."""
    agent, changed = node.agent(), moved_bytes(newer)
    reported(agent, wants(first), is_at(first))
    before, room = served(origin), first.manifest.total_bytes + changed
    agent.reconcile(wants(second, hold=True, limit=room - 1))
    said = until(agent, Phase.PENDING, reason="InsufficientStorage")
    assert said.earlier is not None
    assert said.earlier.revision == first.manifest.revision
    assert served(origin) == before
    reported(agent, wants(second, hold=True, limit=room + (16 << 10)), has_prefetched)
    assert served(origin) - before == changed
