"""A model whose URI ends in a slash: the folder of its URI without it, by hard links, on a real disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.disk.second_names import NOTE
from actors.disk.store import Standing, Store
from actors.manifest import StorageKey, second_key, storage_key
from tests.kit.damage import tree
from tests.node.test_store import FILES, OWNER, commit

URI = "s3://models/llama/"
KEY, SECOND = storage_key(URI), storage_key("s3://models/llama")


def committed(store: Store, files: dict[str, bytes] = FILES) -> None:
    commit(store, files, uri=URI)


def inodes(root: Path, key: StorageKey) -> dict[str, int]:
    folder = root / "models" / key
    return {name: (folder / name).stat().st_ino for name in FILES if (folder / name).exists()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def test_which_uris_have_a_second_key() -> None:
    assert second_key("s3://foo/") == storage_key("s3://foo") == "83fbff445b51876f"
    assert second_key("s3://foo//") == storage_key("s3://foo/")
    assert second_key("s3://foo") is None


def test_both_names_lead_to_the_same_files_and_one_copy_is_counted(root: Path) -> None:
    store = Store(root, "1")
    committed(store)
    assert inodes(root, SECOND) == inodes(root, KEY) != {}
    assert (root / "models" / SECOND / ".localmodel" / NOTE).read_text() == KEY
    assert list(store.committed()) == [KEY]
    assert store.junk == {}


def test_a_folder_that_a_kubelet_has_made_is_filled_in_place(root: Path) -> None:
    store = Store(root, "1")
    early = root / "models" / SECOND
    early.mkdir(parents=True)
    before = early.stat().st_ino
    committed(store)
    assert (early.stat().st_ino, inodes(root, SECOND)) == (before, inodes(root, KEY))


def test_a_copy_that_was_there_before_gets_it_when_the_agent_starts(root: Path) -> None:
    store = Store(root, "1")
    committed(store)
    store._second_names.drop(KEY, URI)
    assert inodes(root, SECOND) == {}
    Store(root, "2").committed()
    assert inodes(root, SECOND) == inodes(root, KEY) != {}


def test_a_new_revision_is_under_both_names_and_a_pod_keeps_the_old_one(root: Path) -> None:
    store = Store(root, "1")
    committed(store)
    mounted = (root / "models" / SECOND / "config.json").open("rb")
    committed(store, FILES | {"config.json": b"[]"})
    assert (root / "models" / SECOND / "config.json").read_bytes() == b"[]"
    assert inodes(root, SECOND) == inodes(root, KEY)
    with mounted:
        assert mounted.read() == FILES["config.json"]


def test_it_goes_with_its_copy(root: Path) -> None:
    store = Store(root, "1")
    committed(store)
    store.remove(KEY, OWNER)
    assert not (root / "models" / SECOND).exists()
    assert {each.key for each in store.aside()} == {KEY, SECOND}


def test_a_model_of_that_uri_has_the_name_to_itself(root: Path) -> None:
    store = Store(root, "1")
    commit(store, uri="s3://models/llama")
    before = tree(root / "models" / SECOND)
    committed(store)
    store.remove(KEY, OWNER)
    assert tree(root / "models" / SECOND) == before
    assert list(store.committed()) == [SECOND]


def test_what_somebody_put_there_is_left_alone(root: Path) -> None:
    store = Store(root, "1")
    (root / "models" / SECOND).mkdir(parents=True)
    (root / "models" / SECOND / "mine").write_text("mine")
    committed(store)
    store.remove(KEY, OWNER)
    assert (root / "models" / SECOND / "mine").read_text() == "mine"


def test_the_second_name_is_no_copy_and_gives_way(root: Path) -> None:
    store = Store(root, "1")
    committed(store)
    assert store.standing(SECOND, OWNER) is Standing.UNMARKED
    commit(store, uri="s3://models/llama")
    assert set(store.committed()) == {KEY, SECOND}
