"""The node agent over real sockets and a real disk: what is asked for gets there, whatever the origin does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.agent import AgentSettings, NodeAgent
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved, storage_key
from actors.messages import DesiredRoot, DesiredState, ModelReport, NodeName, NodeReport, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.disks import tmpfs
from tests.kit.nodes import KEY, NOTHING, URI, Node, a_removal, model, ordering, same_bytes, until, until_gone, wants

MIB = 1 << 20
SAMPLE_BYTES = 3 * MIB


def test_a_model_arrives_complete_verified_and_read_only(
    node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    agent = node.agent()
    first = model(agent.reconcile(wants(resolved)))
    assert first is not None
    assert first.phase in (Phase.DOWNLOADING, Phase.VERIFYING)

    ready = until(agent, Phase.READY)

    assert same_bytes(node.folder(), sample)
    assert ready.bytes_done == ready.bytes_total == ready.bytes_from_origin == SAMPLE_BYTES
    assert ready.manifest_digest == resolved.manifest.digest
    assert ready.revision == resolved.manifest.revision
    assert ready.verified == {"git-sha1": 8, "sha256": 4}
    assert ready.started_at is not None
    assert ready.finished_at is not None
    assert origin.stats()["bytes"] == SAMPLE_BYTES, "every byte was read once"
    modes = {path.stat().st_mode & 0o777 for path in [node.folder(), *node.folder().rglob("*")] if path.is_dir()}
    assert modes == {0o755}
    assert {path.stat().st_mode & 0o777 for path in node.folder().rglob("*") if path.is_file()} == {0o444}
    assert node.left_behind() == []


@pytest.mark.slow
def test_empty_and_many_small_files_are_models_too(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(500):
        path = folder / f"part-{number % 7}" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * (number % 40))
    with Origin({"a/small": folder}) as origin:
        resolved = resolve(ModelSource("hf://a/small"), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        agent = node.agent()
        agent.reconcile(wants(resolved))
        ready = until(agent, Phase.READY, key=storage_key("hf://a/small"))
    assert same_bytes(node.folder("hf://a/small"), folder)
    assert sum(ready.verified.values()) == 500


def test_a_copy_that_nobody_mentions_is_kept_and_reported(node: Node, resolved: Resolved, sample: Path) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    before = until(agent, Phase.READY)
    for state in (NOTHING, replace(NOTHING, roots=())):
        assert model(agent.reconcile(state)) == before
    assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_it_is_removed_when_that_is_ordered_and_comes_back_when_somebody_wants_it(
    node: Node, resolved: Resolved, sample: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)

    with caplog.at_level("INFO", logger="actors.agent"):
        report = agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    assert [record.message for record in caplog.records] == ["removing a copy", "removed a copy"]
    assert not node.folder().exists()
    leaving = model(report)
    assert leaving is None or leaving.phase is Phase.REMOVING
    until_gone(agent)
    assert node.left_behind() == []

    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    assert same_bytes(node.folder(), sample)


REFUSED: dict[str, Callable[[DesiredState], DesiredState]] = {
    "a pod may use it": lambda state: ordering(state, a_removal(KEY), used={KEY: 0.0}),
    "nobody knows which pods use it": lambda state: replace(ordering(state, a_removal(KEY)), used=None),
    "the order is old": lambda state: ordering(state, a_removal(KEY, age_s=61.0)),
    "the order is of a clock that is ahead": lambda state: ordering(state, a_removal(KEY, age_s=-61.0)),
    "it is wanted again": lambda state: replace(state, remove=(a_removal(KEY),), used={}),
    "another cluster put it there": lambda state: ordering(replace(state, owner="cluster-2"), a_removal(KEY)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_order_is_not_carried_out_when(case: str, node: Node, resolved: Resolved) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    before = until(agent, Phase.READY)
    agent.reconcile(REFUSED[case](wants(resolved) if "wanted" in case else NOTHING))
    agent.reconcile(wants(resolved))
    assert until(agent, Phase.READY) == before


def test_an_order_that_is_forced_is_carried_out_under_pods(node: Node, resolved: Resolved) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.reconcile(ordering(NOTHING, a_removal(KEY, forced=True), used={KEY: 0.0}))
    assert not node.folder().exists()


def test_a_copy_that_is_kept_stays_as_it_is_and_is_not_fetched_where_it_is_not(
    node: Node, origin: Origin, resolved: Resolved
) -> None:
    agent = node.agent()
    kept = wants(resolved, kept=True)
    agent.reconcile(kept)
    assert model(agent.report()) is None
    agent.reconcile(wants(resolved))
    before = until(agent, Phase.READY)
    source = replace(kept.models[0].source, revision="other")
    other = replace(kept.models[0], source=source, resolved=None)
    assert model(agent.reconcile(replace(kept, models=(other,)))) == before


def test_what_another_cluster_put_there_is_left_alone(node: Node, resolved: Resolved) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)

    report = agent.reconcile(DesiredState("cluster-2", (DesiredRoot("/models"),)))
    assert model(report) is None
    assert node.folder().exists()
    assert model(agent.reconcile(replace(wants(resolved), owner="cluster-2"))) is not None
    until(agent, Phase.READY)


def test_a_restarted_agent_finds_what_is_committed_without_reading_the_origin(
    node: Node, origin: Origin, resolved: Resolved
) -> None:
    first = node.agent()
    first.reconcile(wants(resolved))
    before = until(first, Phase.READY)
    first.close()
    origin.close()

    second = node.agent()
    assert model(second.report()) == before
    assert model(second.reconcile(replace(wants(replace(resolved)), resolved={}))) == before


def test_a_restarted_agent_refills_what_lost_a_file(node: Node, resolved: Resolved, sample: Path) -> None:
    first = node.agent()
    first.reconcile(wants(resolved))
    until(first, Phase.READY)
    first.close()
    node.folder().chmod(0o755)
    (node.folder() / "config.json").unlink()

    second = node.agent()
    assert [(each.phase, each.damage) for each in second.report().models] == [(Phase.FAILED, "config.json is missing")]
    second.reconcile(wants(resolved))
    until(second, Phase.READY)
    assert same_bytes(node.folder(), sample)


def test_a_restarted_agent_goes_on_where_the_last_one_was(node: Node, origin: Origin, resolved: Resolved) -> None:
    shard = next(file for file in resolved.manifest.files if "00002-of" in file.path)
    others = SAMPLE_BYTES - shard.size
    origin.faults.set(Fault(path=f"*{shard.path}", stall_after_bytes=1000))
    first = node.agent()
    first.reconcile(wants(resolved))
    eventually(
        lambda: (model(first.report()) or _NONE).bytes_done >= others and origin.stats()["bytes"] > others,
        every_s=0.01,
        seen=first.report,
    )
    first.close()
    origin.faults.clear()

    second = node.agent()
    second.reconcile(wants(resolved))
    until(second, Phase.READY)
    assert origin.stats()["bytes"] == SAMPLE_BYTES, "nothing was read twice"
    done = model(second.report())
    assert done is not None
    assert done.bytes_from_origin == SAMPLE_BYTES, "the count goes on, too"


_NONE = ModelReport(KEY, Phase.PENDING, "")


def test_an_agent_that_was_replaced_stops_writing(node: Node, origin: Origin, resolved: Resolved) -> None:
    origin.faults.set(Fault(path="*.safetensors", latency_s=0.2))
    old = node.agent()
    old.reconcile(wants(resolved))
    until(old, Phase.DOWNLOADING)
    new = node.agent()
    failed = until(old, Phase.FAILED, reason="Fenced")
    assert failed.retry_at is not None
    assert not node.folder().exists()
    old.close()

    origin.faults.clear()
    new.reconcile(wants(resolved))
    until(new, Phase.READY)


def test_a_cancelled_fill_leaves_nothing(node: Node, origin: Origin, resolved: Resolved) -> None:
    origin.faults.set(Fault(path="*00003*", stall_after_bytes=0))
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.DOWNLOADING)
    agent.reconcile(NOTHING)
    until_gone(agent)
    eventually(lambda: node.left_behind() == [], seen=node.left_behind)
    assert not node.folder().exists()


@pytest.mark.slow
def test_another_selection_replaces_the_copy_only_once_it_is_complete(
    node: Node, origin: Origin, resolved: Resolved
) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    source = ModelSource(URI, include=("*.json",))
    narrower = resolve(source, SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
    origin.faults.set(Fault(path="*config.json", latency_s=0.3))

    report = model(agent.reconcile(wants(narrower)))
    assert report is not None
    assert report.selection == source.selection
    assert report.phase in (Phase.DOWNLOADING, Phase.VERIFYING), "what the copy before has needs no download"
    assert report.earlier is not None
    assert (report.earlier.selection, report.earlier.revision) == (
        ModelSource(URI).selection,
        resolved.manifest.revision,
    )
    assert (node.folder() / "README.md").exists()
    until(agent, Phase.READY)
    assert not (node.folder() / "README.md").exists()
    agent.reconcile(wants(narrower))  # it is told of pods again: what it knew is older than the replacement
    eventually(lambda: node.left_behind() == [], seen=node.left_behind)


SAME_FILES: dict[str, ModelSource] = {
    "the branch it is on": ModelSource(URI, revision="main"),
    "globs that leave nothing out": ModelSource(URI, exclude=("*.nothing",)),
    "globs that take everything": ModelSource(URI, include=("*",)),
}


@pytest.mark.parametrize("source", SAME_FILES.values(), ids=SAME_FILES.keys())
def test_another_request_for_the_same_files_fetches_nothing(
    node: Node, origin: Origin, resolved: Resolved, source: ModelSource
) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    folder = node.folder().stat().st_ino
    again = resolve(source, SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
    before = origin.stats()["bytes"]

    report = model(agent.reconcile(wants(again)))
    assert report is not None
    assert (report.phase, report.selection) == (Phase.READY, source.selection)
    assert origin.stats()["bytes"] == before
    assert node.folder().stat().st_ino == folder
    agent.close()
    after = model(node.agent().reconcile(wants(again)))
    assert after is not None
    assert (after.phase, after.selection) == (Phase.READY, source.selection)


def test_while_nothing_is_known_of_another_request_the_copy_is_served(node: Node, resolved: Resolved) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    held = until(agent, Phase.READY)
    asked = replace(wants(resolved), resolved={})
    (wanted,) = asked.models
    typo = replace(asked, models=(replace(wanted, source=ModelSource(URI, revision="typo"), resolved=None),))

    report = model(agent.reconcile(typo))
    assert report is not None
    assert (report.phase, report.failure) == (Phase.PENDING, None)
    assert report.earlier is not None
    assert report.earlier.manifest_digest == held.manifest_digest
    assert node.folder().exists()
    back = model(agent.reconcile(asked))
    assert back is not None
    assert (back.phase, back.earlier) == (Phase.READY, None)


def test_a_copy_of_another_digest_than_is_expected_is_kept_and_not_served(node: Node, resolved: Resolved) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.reconcile(wants(resolved, expected_digest="sha256:" + "0" * 64))
    report = until(agent, Phase.FAILED, reason="DigestMismatch")
    assert report.earlier is None
    assert node.folder().exists()


def test_bytes_that_are_wrong_once_are_fetched_again(
    node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    origin.faults.set(Fault(path="/_cdn/*00001*", corrupt_bytes=3, times=1))
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_bytes_that_stay_wrong_are_never_ready_and_recover_by_themselves(
    node: Node, origin: Origin, resolved: Resolved
) -> None:
    origin.faults.set(Fault(path="*tokenizer.json", corrupt_bytes=1))
    agent = node.agent()
    agent.reconcile(wants(resolved))
    failed = until(agent, Phase.FAILED, reason="IntegrityError")
    assert failed.failure is not None
    assert "tokenizer.json: expected git-sha1:" in failed.failure.message
    assert failed.retry_at is not None
    assert not node.folder().exists()

    origin.faults.clear()
    until(agent, Phase.READY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault(path="/_cdn/*", truncate_bytes=100, times=3),
        Fault(path="/_cdn/*", drop_after_bytes=1000, times=3),
        Fault(path="/_cdn/*", stall_after_bytes=1000, times=1),
        Fault(path="/_cdn/*", status=500, times=3),
        Fault(path="*", status=429, retry_after="0", times=3),
        Fault(path="/_cdn/*", status=403, times=2),
    ],
    ids=["truncated", "dropped", "stalled", "500", "429", "an expired link"],
)
def test_an_origin_that_stumbles_is_tried_again_without_starting_over(
    fault: Fault, node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    origin.faults.set(fault)
    agent = node.agent(stall_timeout_s=0.3)
    agent.reconcile(wants(resolved))
    ready = until(agent, Phase.READY)
    assert same_bytes(node.folder(), sample)
    assert ready.bytes_done == SAMPLE_BYTES
    assert origin.stats()["bytes"] < SAMPLE_BYTES + MIB


@pytest.mark.slow
def test_a_pause_the_origin_asks_for_is_kept_and_said(node: Node, origin: Origin, resolved: Resolved) -> None:
    origin.faults.set(Fault(path="/_cdn/*", status=429, retry_after="1", times=1))
    agent = node.agent()
    agent.reconcile(wants(resolved))
    waiting = until(agent, Phase.DOWNLOADING, reason="SourceThrottled")
    assert waiting.retry_at is not None
    until(agent, Phase.READY)


@pytest.mark.parametrize(
    ("status", "reason"), [(404, "SourceNotFound"), (401, "SourceDenied")], ids=["gone", "forbidden"]
)
def test_a_refusal_is_reported_at_once_and_a_fresh_resolution_tries_at_once(
    status: int, reason: str, node: Node, origin: Origin, resolved: Resolved
) -> None:
    origin.faults.set(Fault(path="*/resolve/*", status=status))
    agent = node.agent(backoff_first_s=1000.0, backoff_max_s=1000.0)
    agent.reconcile(wants(resolved))
    failed = until(agent, Phase.FAILED, reason=reason)
    assert failed.resolved == resolved.name
    assert failed.attempt == 1

    origin.faults.clear()
    fresh = replace(resolved, locations=tuple(replace(each, url=each.url + "?fresh") for each in resolved.locations))
    agent.reconcile(wants(fresh))
    until(agent, Phase.READY)


@pytest.mark.slow
def test_a_file_that_changed_is_not_mixed_with_what_it_was(node: Node, sample: Path) -> None:
    with Origin({REPO: sample}) as origin:
        url = f"{origin.url}/files/{REPO}/model-00001-of-00004.safetensors"
        resolved = resolve(ModelSource(url), SourceOptions())
        origin.faults.set(Fault(etag='"another"'))
        agent = node.agent()
        agent.reconcile(wants(resolved))
        failed = until(agent, Phase.FAILED, reason="SourceChanged", key=storage_key(url))
        assert failed.resolved == resolved.name
        origin.faults.clear()
        ready = until(agent, Phase.READY, key=storage_key(url))
    content = (sample / "model-00001-of-00004.safetensors").read_bytes()
    assert ready.verified == {"size": 1}
    sealed = ManifestFile("model-00001-of-00004.safetensors", len(content), None)
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert ready.manifest_digest == replace(resolved.manifest, files=(replace(sealed, digest=digest),)).digest  # type: ignore[arg-type]  # a Digest is a string


def test_a_file_that_grew_is_not_mixed_with_what_it_was(node: Node, sample: Path) -> None:
    with Origin({REPO: sample}) as origin:
        url = f"{origin.url}/files/{REPO}/model-00001-of-00004.safetensors"
        resolved = resolve(ModelSource(url), SourceOptions())
        shorter = replace(resolved.manifest.files[0], size=resolved.manifest.files[0].size - 1)
        stale = replace(resolved, manifest=replace(resolved.manifest, files=(shorter,)))
        agent = node.agent()
        agent.reconcile(wants(stale))
        until(agent, Phase.FAILED, reason="SourceChanged", key=storage_key(url))
        assert not node.folder(url).exists()


def test_locations_that_are_renewed_on_the_way_are_used(node: Node, origin: Origin, resolved: Resolved) -> None:
    origin.faults.set(Fault(path="*/resolve/*00004*", status=500))
    agent = node.agent(chunk_tries=10_000)
    agent.reconcile(wants(resolved))
    until(agent, Phase.DOWNLOADING, reason="SourceError")
    direct = f"{origin.url}/files/{REPO}/"
    locations = tuple(Location(direct + file.path) for file in resolved.manifest.files)
    agent.reconcile(wants(replace(resolved, locations=locations)))
    ready = until(agent, Phase.READY)
    assert ready.attempt == 0
    assert origin.stats()["bytes"] == SAMPLE_BYTES


def test_content_that_travels_with_the_message_and_files_behind_fsspec(node: Node, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"w" * 700_000)
    source = ModelSource(f"file://{tmp_path}")
    files = (ManifestFile("config.json", 2), ManifestFile("weights", 700_000))
    locations = (Location("https://gated/config.json", content=b"{}"), Location(f"file://{tmp_path}/weights"))
    resolved = Resolved(Manifest(source, None, files), locations)
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY, key=storage_key(source.uri))
    assert (node.folder(source.uri) / "config.json").read_bytes() == b"{}"
    assert (node.folder(source.uri) / "weights").read_bytes() == b"w" * 700_000


def test_another_digest_than_the_expected_is_refused_before_the_first_byte(
    node: Node, origin: Origin, resolved: Resolved
) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved, expected_digest="sha256:00"))
    failed = until(agent, Phase.FAILED, reason="DigestMismatch")
    assert failed.failure is not None
    assert str(resolved.manifest.digest) in failed.failure.message
    assert origin.stats()["bytes"] == 0

    agent.reconcile(wants(resolved, expected_digest=resolved.manifest.digest))
    until(agent, Phase.READY)
    agent.reconcile(wants(resolved, expected_digest="sha256:00"))
    until(agent, Phase.FAILED, reason="DigestMismatch")
    assert node.folder().exists(), "what is there stays, but is not called ready"
    agent.reconcile(wants(resolved, expected_digest=resolved.manifest.digest))
    until(agent, Phase.READY)


def test_what_does_not_fit_is_not_started_and_starts_once_it_fits(
    node: Node, origin: Origin, resolved: Resolved
) -> None:
    agent = node.agent()
    agent.reconcile(wants(resolved, limit=SAMPLE_BYTES - 1))
    waiting = until(agent, Phase.PENDING, reason="InsufficientStorage")
    assert waiting.failure is not None
    assert waiting.failure.message == (
        "needs 3Mi in /models, 2.9Mi allowed, of which 0 are used and 0 reserved: raise the group's storageLimit, or"
        " remove a model"
    )
    assert origin.stats()["bytes"] == 0

    agent.reconcile(wants(resolved, limit=SAMPLE_BYTES))
    until(agent, Phase.READY)
    assert [root.used_bytes for root in agent.report().roots] == [SAMPLE_BYTES]


def test_headroom_stays_free(node: Node, resolved: Resolved) -> None:
    agent = node.agent(headroom_bytes=1 << 60)
    agent.reconcile(wants(resolved))
    waiting = until(agent, Phase.PENDING, reason="InsufficientStorage")
    assert waiting.failure is not None
    assert "of which 1Ei stay free" in waiting.failure.message


def test_a_root_the_agent_does_not_have_is_named_and_never_made(node: Node, resolved: Resolved) -> None:
    agent = node.agent()
    report = agent.reconcile(wants(resolved, root="/elsewhere"))
    failed = model(report)
    assert failed is not None
    assert failed.failure is not None
    assert failed.failure.reason == "PathMismatch"
    assert "/elsewhere" in failed.failure.message
    assert "/models" in failed.failure.message
    assert {root.path: root.failure.reason for root in report.roots if root.failure} == {"/elsewhere": "PathMismatch"}
    assert not (node.host_root / "elsewhere").exists()


def test_a_root_that_is_mounted_later_is_used_then(node: Node, resolved: Resolved) -> None:
    agent = node.agent(roots=("/late",))
    agent.reconcile(wants(resolved, root="/late"))
    until(agent, Phase.FAILED, reason="PathMismatch")
    assert not (node.host_root / "late").exists()
    (node.host_root / "late").mkdir()
    agent.reconcile(wants(resolved, root="/late"))
    until(agent, Phase.READY)


def test_a_file_in_the_place_of_a_model_is_neither_used_nor_removed(node: Node, resolved: Resolved) -> None:
    node.folder().parent.mkdir(parents=True)
    node.folder().write_text("data")
    agent = node.agent()
    agent.reconcile(wants(resolved))
    failed = until(agent, Phase.FAILED, reason="PathOccupied")
    assert failed.failure is not None
    assert str(node.folder()) in failed.failure.message
    agent.reconcile(NOTHING)
    assert node.folder().read_text() == "data"


def test_the_more_important_model_is_filled_first_and_the_others_take_their_turn(node: Node, tmp_path: Path) -> None:
    resolved = {}
    for name in ("low", "high", "middle"):
        path = tmp_path / name
        path.write_bytes(name.encode() * 1000)
        resolved[name] = resolve(ModelSource(f"file://{path}"), SourceOptions())
    everything = [wants(each, priority=priority) for each, priority in zip(resolved.values(), (0, 10, 5), strict=True)]
    together = replace(
        everything[0],
        models=tuple(model for each in everything for model in each.models),
        resolved={name: each for state in everything for name, each in state.resolved.items()},
    )
    agent = node.agent(concurrent_models=1)
    agent.reconcile(together)
    keys = {name: storage_key(f"file://{tmp_path / name}") for name in resolved}
    for name in resolved:
        until(agent, Phase.READY, key=keys[name])
    started = {name: (model(agent.report(), key) or _NONE).started_at or 0.0 for name, key in keys.items()}
    assert sorted(started, key=lambda name: started[name]) == ["high", "middle", "low"]


def test_reconcile_never_waits_for_a_transfer(node: Node, origin: Origin, resolved: Resolved) -> None:
    origin.faults.set(Fault(latency_s=5.0))
    agent = node.agent()
    reports: list[NodeReport] = []
    caller = threading.Thread(target=lambda: reports.append(agent.reconcile(wants(resolved))))
    caller.start()
    caller.join(2.0)
    assert len(reports) == 1
    origin.faults.clear()


def test_a_full_disk_is_said_and_nothing_is_left(tmp_path: Path, resolved: Resolved) -> None:
    host_root = tmp_path / "host"
    with tmpfs(host_root / "models", "size=2m"):
        agent = NodeAgent(NodeName("n"), AgentSettings(host_root=host_root, headroom_bytes=-(1 << 40)))
        try:
            agent.reconcile(wants(resolved))
            failed = until(agent, Phase.PENDING, reason="InsufficientStorage")
            assert failed.failure is not None
            assert "the disk is full" in failed.failure.message
            ingests = host_root / "models/.localmodel/ingest"
            eventually(lambda: list(ingests.iterdir()) == [], seen=lambda: list(ingests.iterdir()))
        finally:
            agent.close()
