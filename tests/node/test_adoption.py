"""What an agent makes of a folder that is not simply its own: damaged, filled by another, made empty, planted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.agent import NodeAgent
from actors.chunks import Grid
from actors.disk.marker import MARKER, Marker, read_marker
from actors.manifest import Manifest, ManifestFile, ModelSource, Resolved
from actors.messages import Company, DesiredState, Member, NodeName, Phase
from actors.peers.client import Asker
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit import damage
from tests.kit.damage import names, tree
from tests.kit.nodes import KEY, NOTHING, OWNER, URI, Node, a_removal, model, ordering, until, until_gone, wants

SAMPLE_BYTES = 3 << 20
BIG = "model-00002-of-00004.safetensors"


@pytest.fixture
def filled(node: Node, resolved: Resolved) -> Node:
    """A node that holds the model, and whose agent has ended."""
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.close()
    return node


def ready(node: Node, desired: DesiredState) -> NodeAgent:
    agent = node.agent()
    agent.reconcile(desired)
    until(agent, Phase.READY)
    return agent


def copy_of(sample: Path, folder: Path) -> None:
    """As KServe's downloader leaves it."""
    subprocess.run(["cp", "-r", sample, folder], check=True)


# --- a damaged marker ---


def test_a_damaged_marker_is_healed_without_the_origin_once_every_byte_was_read(
    filled: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    origin.close()
    before = read_marker(filled.folder())
    damage.flip(filled.folder() / MARKER)
    agent = filled.agent()
    said = model(agent.report())
    assert said is not None
    assert (said.phase, "its model's marker was damaged" in (said.damage or "")) == (Phase.FAILED, True)
    agent.reconcile(replace(wants(resolved), resolved={}))
    after = until(agent, Phase.READY)
    assert (after.damage, "marker was damaged" in (after.repaired or "")) == (None, True)
    assert (tree(filled.folder()), read_marker(filled.folder())) == (tree(sample), before)


@pytest.mark.parametrize("recorded", [True, False], ids=["by our record", "by what the source says"])
def test_of_a_copy_with_a_damaged_marker_only_what_is_wrong_is_fetched(
    recorded: bool, filled: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    before = origin.stats()["bytes"]
    damage.cut(filled.folder() / MARKER)
    damage.flip(filled.folder() / BIG, 1000)
    damage.gone(filled.folder() / "config.json")
    damage.link("/etc/passwd")(filled.folder() / "README.md")
    if not recorded:
        damage.gone(filled.root / ".localmodel/committed")
        damage.gone(filled.root / ".localmodel/scrub")
    wrong = sum((sample / name).stat().st_size for name in (BIG, "config.json", "README.md"))
    ready(filled, wants(resolved))
    assert (tree(filled.folder()), origin.stats()["bytes"] - before) == (tree(sample), wrong)
    found = read_marker(filled.folder())
    assert found is not None
    assert (found.owner, found.manifest.digest) == (OWNER, resolved.manifest.digest)


@pytest.mark.slow
def test_a_marker_that_is_damaged_while_the_agent_runs_is_healed_too(
    node: Node, origin: Origin, resolved: Resolved, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.agent.agent.RESCAN_S", 0.1)
    agent = ready(node, wants(resolved))
    damage.flip(node.folder() / MARKER)

    def repaired() -> bool:
        said = model(agent.report())
        return said is not None and "marker" in (said.repaired or "")

    eventually(repaired, seen=agent.report)
    until(agent, Phase.READY)
    assert (tree(node.folder()), origin.stats()["bytes"]) == (tree(sample), SAMPLE_BYTES)


@pytest.mark.slow
def test_a_copy_with_a_damaged_marker_is_removed_when_that_is_ordered(filled: Node) -> None:
    damage.text("[" * 100_000)(filled.folder() / MARKER)
    agent = filled.agent()
    agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    until_gone(agent)
    eventually(lambda: filled.left_behind() == [], seen=filled.left_behind)
    assert not filled.folder().exists()


def test_a_folder_of_which_it_cannot_be_told_is_named_and_kept(filled: Node) -> None:
    damage.cut(filled.folder() / MARKER)
    damage.gone(filled.root / ".localmodel/committed")
    agent = filled.agent()
    agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    assert (filled.folder() / BIG).exists()
    (root,) = agent.report().roots
    (named,) = root.junk
    assert named.startswith(f"models/{KEY}: its marker is damaged")


def test_without_digests_a_damaged_copy_is_filled_anew_and_the_old_one_lies_aside(node: Node, tmp_path: Path) -> None:
    damage.text(b"w" * 1000)(tmp_path / "source/w.bin")
    resolved = resolve(ModelSource(f"file://{tmp_path / 'source'}"), SourceOptions())
    uri = resolved.manifest.source.uri
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY, key=node.folder(uri).name)
    agent.close()
    damage.cut(node.folder(uri) / MARKER)
    damage.gone(node.root / ".localmodel/committed")
    again = node.agent()
    again.reconcile(replace(wants(resolved), used=None))
    until(again, Phase.READY, key=node.folder(uri).name)
    assert [root.aside_bytes for root in again.report().roots] == [1000 + _blocks(node.root / ".localmodel/trash")]


def _blocks(trash: Path) -> int:
    """What a copy whose size nobody has written down takes, beyond its content."""
    taken = sum(path.lstat().st_blocks * 512 for path in trash.rglob("*") if path.is_file())
    return taken - 1000


# --- what others put there ---


@pytest.mark.parametrize("wrong", [(), (BIG,)], ids=["all of it right", "one file wrong"])
def test_a_copy_that_another_controller_filled_is_read_and_adopted(
    wrong: tuple[str, ...], node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    node.folder().parent.mkdir()
    copy_of(sample, node.folder())
    for name in wrong:
        damage.flip(node.folder() / name, 1000)
    ready(node, wants(resolved))
    fetched = sum((sample / name).stat().st_size for name in wrong)
    assert (tree(node.folder()), origin.stats()["bytes"]) == (tree(sample), fetched)


def test_an_agent_that_dies_while_it_adopts_does_not_take_it_for_read(
    node: Node, origin: Origin, resolved: Resolved, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.folder().parent.mkdir()
    copy_of(sample, node.folder())
    damage.flip(node.folder() / BIG, 1000)
    with monkeypatch.context() as dying:
        dying.setattr("actors.agent.task.Task.examine", lambda *_, **__: None)
        first = node.agent()
        first.reconcile(wants(resolved))
        first.close()
    assert read_marker(node.folder()) is not None
    ready(node, wants(resolved))
    assert tree(node.folder()) == tree(sample)


STRAYS = ("notes.txt", ".cache/huggingface/download/config.json.metadata", "original/old.bin")


@pytest.mark.parametrize("used", [False, True], ids=["no pod uses it", "a pod uses it"])
def test_of_what_kserves_agent_left_what_is_right_is_never_fetched(
    used: bool, node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    """It was stopped in the middle: a file is missing, one is short, one is wrong; and other tools left something."""
    folder = node.folder()
    folder.parent.mkdir()
    copy_of(sample, folder)
    damage.gone(folder / "config.json")
    damage.cut(folder / "model-00001-of-00004.safetensors")
    damage.flip(folder / BIG, 1000)
    for path in STRAYS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("not of the model")
    inode = folder.stat().st_ino
    agent = ready(node, replace(wants(resolved), used={KEY: time.time()} if used else {}))
    wrong = ("config.json", "model-00001-of-00004.safetensors", BIG)
    assert origin.stats()["bytes"] == sum((sample / name).stat().st_size for name in wrong)
    assert folder.stat().st_ino == inode, "a pod that has mounted it sees the model"
    assert {path for path in STRAYS if (folder / path).exists()} == (set(STRAYS) if used else set())
    kept = [path.read_text() for path in (node.root / ".localmodel/aside").rglob("*") if path.is_file()]
    assert kept == ([] if used else ["not of the model"] * 3)
    (root,) = agent.report().roots
    assert root.failure is None


@pytest.mark.parametrize("what", ["nothing of it is of the model", "there is too much of it"])
def test_a_folder_that_cannot_be_adopted_is_set_aside_whole_and_kept(
    what: str, node: Node, resolved: Resolved, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.disk.committed.MOST_STRAYS", 2)
    node.folder().mkdir(parents=True)
    if what == "there is too much of it":
        copy_of(sample / "config.json", node.folder() / "config.json")
    for number in range(3):
        (node.folder() / f"{number}.txt").write_text("mine")
    before = tree(node.folder())
    ready(node, wants(resolved))
    assert tree(node.folder()) == tree(sample)
    (aside,) = (node.root / ".localmodel/aside").iterdir()
    assert tree(aside) == before


def test_without_digests_a_folder_without_a_marker_is_set_aside_and_the_model_filled_anew(
    node: Node, resolved: Resolved, sample: Path
) -> None:
    node.folder().parent.mkdir()
    copy_of(sample, node.folder())
    files = tuple(replace(file, digest=None) for file in resolved.manifest.files)
    ready(node, wants(replace(resolved, manifest=replace(resolved.manifest, files=files))))
    (aside,) = (node.root / ".localmodel/aside").iterdir()
    assert (tree(node.folder()), tree(aside)) == (tree(sample), tree(sample))


@pytest.mark.parametrize("below", ["", "sub", "original"])
def test_a_pod_that_came_before_the_model_gets_it(below: str, node: Node, resolved: Resolved, sample: Path) -> None:
    """The kubelet made the folder and mounted it: a process whose working directory it is stands for the pod."""
    (node.folder() / below).mkdir(parents=True)
    inode = node.folder().stat().st_ino
    pod = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline(); print(open('config.json').read())"],
        cwd=node.folder(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    ready(node, wants(resolved))
    out, _ = pod.communicate("go\n", timeout=20)
    assert out.strip() == (sample / "config.json").read_text().strip()
    assert (node.folder().stat().st_ino, node.left_behind(), tree(node.folder())) == (inode, [], tree(sample))


def test_a_pod_that_has_mounted_the_empty_folder_gets_the_model(
    node: Node, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    node.folder().mkdir(parents=True)
    (tmp_path / "pod").mkdir()
    bind = ["mount", "--bind", str(node.folder()), str(tmp_path / "pod")]
    if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount here")
    try:
        ready(node, wants(resolved))
        assert tree(tmp_path / "pod") == tree(sample)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "pod"], check=True)


# --- what a pod holds open ---


@pytest.mark.slow
def test_an_old_copy_that_a_pod_holds_is_counted_kept_over_a_restart_and_then_goes(
    node: Node, origin: Origin, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    began = time.time() - 60
    agent = ready(node, wants(resolved))
    (tmp_path / "pod").mkdir()
    bind = ["mount", "--bind", str(node.folder()), str(tmp_path / "pod")]
    if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount here")
    try:
        narrower = resolve(ModelSource(URI, include=("*.json",)), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        held = replace(wants(narrower), used={KEY: began})
        agent.reconcile(held)
        until(agent, Phase.READY)
        eventually(lambda: not (node.folder() / "README.md").exists())
        own = SAMPLE_BYTES - narrower.manifest.total_bytes  # the others are the new copy's, too
        eventually(lambda: agent.report().roots[0].aside_bytes == own, seen=agent.report)
        agent.close()
        agent = node.agent()
        agent.reconcile(held)
        until(agent, Phase.READY)
        (root,) = agent.report().roots
        assert (root.aside_bytes, root.used_bytes) == (own, SAMPLE_BYTES)
        assert tree(tmp_path / "pod") == tree(sample), "every file of it can be read to its end"
        agent.reconcile(replace(held, used={KEY: time.time() + 1}))
        eventually(lambda: agent.report().roots[0].aside_bytes == 0, seen=agent.report)
        assert node.left_behind() == []
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "pod"], check=True)


@pytest.mark.slow
def test_a_removal_that_is_forced_does_not_unlink_under_a_pod(
    node: Node, resolved: Resolved, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps, sweep = list[NodeAgent](), NodeAgent._sweep

    def counted(agent: NodeAgent) -> None:
        sweep(agent)
        sweeps.append(agent)

    monkeypatch.setattr("actors.agent.agent.HOUSEKEEPING_S", 0.05)
    monkeypatch.setattr(NodeAgent, "_sweep", counted)
    agent = ready(node, wants(resolved))
    folder = os.open(node.folder(), os.O_RDONLY | os.O_DIRECTORY)
    agent.reconcile(ordering(NOTHING, a_removal(KEY, forced=True), used={KEY: time.time() - 60}))
    until_gone(agent)
    done = len(sweeps)
    eventually(lambda: len(sweeps) > done + 2)
    assert tree(Path(f"/proc/self/fd/{folder}")) == tree(sample)
    os.close(folder)
    assert [root.aside_bytes for root in agent.report().roots] == [SAMPLE_BYTES]
    assert agent.report().aside == {KEY}, "so that the coordinator looks at the pods again"
    agent.reconcile(replace(NOTHING, used={}))
    eventually(lambda: node.left_behind() == [], seen=node.left_behind)


# --- what is planted ---


def a_company(manifest: Manifest) -> Company:
    return Company("fill-1", 64 << 10, (Member(NodeName("node-1")), Member(NodeName("thief"))), "secret")


def served(agent: NodeAgent, manifest: Manifest) -> list[int]:
    """What the peer port says to a peer with the token that asks for every chunk, by status."""
    address = agent.report().peer_address
    assert address is not None
    asker = Asker(NodeName("thief"), "fill-1", lambda: ["secret"], 5.0)
    try:
        statuses = []
        for number in range(len(Grid(manifest.files, 64 << 10).chunks)):
            with asker.ask(Member(NodeName("node-1"), address=address), "GET", f"chunks/{number}") as reply:
                statuses.append(reply.status)
                reply.read(1 << 20)
        return statuses
    finally:
        asker.close()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../../../etc/passwd", "link", "sub/passwd"], ids=["absolute", "up", "link", "via"]
)
def test_a_planted_marker_serves_peers_nothing_but_what_is_in_its_folder(
    path: str, node: Node, resolved: Resolved
) -> None:
    size = Path("/etc/passwd").stat().st_size
    source = ModelSource(URI)
    manifest = Manifest(source, "r1", (ManifestFile(path, size, "sha256:" + "0" * 64),))  # type: ignore[arg-type]  # a Digest is a string
    damage.text(Marker(OWNER, manifest, {path: "sha256"}, 1.0, 2.0).content)(node.folder() / MARKER)
    (node.folder() / "link").symlink_to("/etc/passwd")
    (node.folder() / "sub").symlink_to("/etc")
    agent = node.agent(peer_host="127.0.0.1")
    company = a_company(manifest)
    desired = wants(resolved, company=company.name)
    agent.reconcile(replace(desired, companies={company.name: company}, resolved={}))
    assert set(served(agent, manifest)) <= {404, 425, 503}


@pytest.mark.slow
def test_a_file_that_became_a_link_is_not_served_nor_taken_for_right(
    node: Node, origin: Origin, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    agent = node.agent(peer_host="127.0.0.1")
    company = a_company(resolved.manifest)
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.reconcile(replace(wants(resolved, company=company.name), companies={company.name: company}))
    eventually(lambda: 200 in served(agent, resolved.manifest))
    origin.faults.set(Fault(status=500))
    elsewhere = tmp_path / "elsewhere"
    (node.folder() / BIG).rename(elsewhere)
    (node.folder() / BIG).symlink_to(elsewhere)
    index = [file.path for file in resolved.manifest.files].index(BIG)
    mine = Grid(resolved.manifest.files, 64 << 10).of_file(index)
    statuses = served(agent, resolved.manifest)
    assert {statuses[number] for number in mine} <= {425, 503}
    agent.close()
    again = node.agent()
    said = model(again.report())
    assert said is not None
    assert (said.phase, said.damage) == (Phase.FAILED, f"{BIG} is no longer a regular file")
    origin.faults.clear()
    again.reconcile(wants(resolved))
    until(again, Phase.READY)
    assert (tree(node.folder()), elsewhere.exists()) == (tree(sample), True)


@pytest.mark.slow
def test_a_model_whose_folder_became_a_link_is_filled_anew_and_what_it_points_to_stays(
    filled: Node, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    damage.text("precious")(tmp_path / "outside/config.json")
    damage.link(tmp_path / "outside")(filled.folder())
    agent = ready(filled, wants(resolved))
    assert (tree(filled.folder()), names(tmp_path / "outside")) == (tree(sample), ["config.json"])
    (root,) = agent.report().roots
    assert any(f"models/{KEY}: is not a folder" in each for each in root.junk)


@pytest.mark.parametrize("place", [".localmodel", ".localmodel/trash", ".localmodel/ingest", "models"])
def test_a_link_in_our_places_is_set_aside_reported_and_leads_nowhere(
    place: str, node: Node, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    damage.text("precious")(tmp_path / "outside/tree/file")
    damage.link(tmp_path / "outside")(node.root / place)
    agent = ready(node, wants(resolved))
    agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    until_gone(agent)
    eventually(lambda: node.left_behind() == [], seen=node.left_behind)
    assert (tree(tmp_path / "outside"), names(tmp_path / "outside")) == ({"tree/file": b"precious"}, ["tree"])
    (root,) = agent.report().roots
    assert any(each.startswith(f"{place}: is no folder") for each in root.junk), root.junk


def test_a_root_that_breaks_us_is_said_and_the_others_are_served(
    tmp_path: Path, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.disk.store import Store

    committed = Store.committed

    def broken(store: Store) -> object:
        if store.path.name == "bad":
            raise RecursionError("a bug")
        return committed(store)

    monkeypatch.setattr(Store, "committed", broken)
    with Node(tmp_path / "host") as node:
        (node.host_root / "bad").mkdir()
        agent = node.agent(roots=("/models", "/bad"))
        agent.reconcile(wants(resolved))
        until(agent, Phase.READY)
        failures = {root.path: root.failure.reason for root in agent.report().roots if root.failure}
        assert failures == {"/bad": "InternalError"}


def test_what_is_left_of_a_fill_that_cannot_be_removed_fetches_nothing_twice(
    node: Node, origin: Origin, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.disk.handles import Folder

    remove, failed = Folder.remove, list[str]()

    def busy(folder: Folder, name: str) -> None:
        if folder.path.name == "ingest" and not failed and node.folder().exists():
            failed.append(name)
            raise OSError(16, os.strerror(16))
        remove(folder, name)

    monkeypatch.setattr(Folder, "remove", busy)
    ready(node, wants(resolved))
    assert (len(failed), origin.stats()["bytes"]) == (1, SAMPLE_BYTES)


@pytest.mark.slow
@pytest.mark.parametrize("where", [(KEY, f"models/{KEY}"), (f"models/{KEY}",)], ids=["always", "after the marker"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_disk_that_stumbles_has_not_lost_its_models(
    number: int, where: tuple[str, ...], node: Node, origin: Origin, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.disk.handles import Folder

    monkeypatch.setattr("actors.agent.agent.RESCAN_S", 0.05)
    monkeypatch.setattr("actors.agent.agent.HOUSEKEEPING_S", 0.05)
    agent, enter, asked = ready(node, wants(resolved)), Folder.enter, list[str]()

    def stumbling(folder: Folder, path: str, *, make: bool = False) -> Folder:
        if path in where:
            asked.append(path)
            raise OSError(number, os.strerror(number))
        return enter(folder, path, make=make)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "enter", stumbling)
        eventually(lambda: len(asked) > 3)
        assert [each.phase for each in agent.reconcile(wants(resolved)).models] == [Phase.READY]
    until(agent, Phase.READY)
    assert origin.stats()["bytes"] == SAMPLE_BYTES


def test_an_attempt_whose_end_cannot_be_told_is_over_all_the_same(
    node: Node, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actors.disk.ingest import Ingest

    def failing(_: Ingest) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Ingest, "close", failing)
    ready(node, wants(resolved))
    assert node.left_behind() == []
