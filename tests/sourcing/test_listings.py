"""Nothing that a source lists vanishes: it is there, or the fill is refused by its name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fsspec import AbstractFileSystem

from actors.disk.marker import MARKER
from actors.errors import SourceDenied, SourceError
from actors.manifest import ModelSource
from actors.sources.entries import files_of
from actors.sources.filesystems import listing
from actors.sources.local_files import MAX_DEPTH, local_listing
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator import cli
from tests.kit.s3_server import s3


def filled(uri: str, target: Path, *more: str) -> dict[str, bytes]:
    """What `localmodel fill` makes of it. Links are read here, and none may be there."""
    assert cli.main(["fill", uri, str(target), *more]) == 0
    paths = [path for path in target.rglob("*") if not path.is_dir()]
    assert not any(path.is_symlink() for path in target.rglob("*"))
    return {name: path.read_bytes() for path in paths if (name := path.relative_to(target).as_posix()) != MARKER}


# Folders of this machine


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`tree/model` is the source; beside it is what links lead out to."""
    model = tmp_path / "tree" / "model"
    (model / "sub").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "sub" / "w.bin").write_bytes(b"weights")
    (tmp_path / "tree" / "out").mkdir()
    (tmp_path / "tree" / "out" / "blob").write_bytes(b"blob")
    return model


PLAIN = {"config.json": b"{}", "sub/w.bin": b"weights"}


@pytest.mark.parametrize(
    ("name", "target", "more"),
    [
        ("link", "config.json", {"link": b"{}"}),
        ("sub/link", "../config.json", {"sub/link": b"{}"}),
        ("link", "../out/blob", {"link": b"blob"}),
        ("link", "{tree}/out/blob", {"link": b"blob"}),
        ("link", "sub", {"link/w.bin": b"weights"}),
        ("link", "../out", {"link/blob": b"blob"}),
        ("sub/link", "{tree}/out", {"sub/link/blob": b"blob"}),
    ],
)
def test_links_are_followed(name: str, target: str, more: dict[str, bytes], tree: Path, tmp_path: Path) -> None:
    (tree / name).symlink_to(target.format(tree=tree.parent))
    assert filled(f"file://{tree}", tmp_path / "to") == PLAIN | more


@pytest.mark.parametrize(
    "name", ["a ", " b", "c\nd", "e\tf", "g?h", "i#j", "%41", "-k", "~", "*", "[l]", "...", "\u2028m"]
)
def test_names_are_taken_as_they_are(name: str, tree: Path, tmp_path: Path) -> None:
    (tree / name).write_bytes(b"odd")
    assert filled(f"file://{tree}", tmp_path / "to") == PLAIN | {name: b"odd"}


def test_links_to_links_and_a_linked_root_are_followed(tree: Path, tmp_path: Path) -> None:
    (tree / "a").symlink_to("b")
    (tree / "b").symlink_to("../out/blob")
    (tmp_path / "root").symlink_to(tree)
    assert filled(f"file://{tmp_path / 'root'}", tmp_path / "to") == PLAIN | {"a": b"blob", "b": b"blob"}


def test_a_snapshot_of_the_hubs_cache_is_a_model(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, content in PLAIN.items():
        (blobs / name.replace("/", "-")).write_bytes(content)
        (snapshot / name).parent.mkdir(exist_ok=True)
        up = "../" * (2 + name.count("/"))
        (snapshot / name).symlink_to(f"{up}blobs/{name.replace('/', '-')}")
    assert filled(f"file://{snapshot}", tmp_path / "to") == PLAIN


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # its whole path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a dangling link": (lambda path: path.symlink_to("absent"), "it is a link to absent, which does not exist"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "it is a link that leads in a circle"),
    "a link to its folder": (lambda path: path.symlink_to("."), "it is a link to a folder that it is in"),
    "a link further up": (lambda path: path.symlink_to("../.."), "it is a link to a folder that it is in"),
    "a pipe": (lambda path: os.mkfifo(path), "it is a pipe"),
    "a socket": (make_socket, "it is a socket"),
    "a link to a device": (lambda path: path.symlink_to("/dev/null"), "it is a device"),
    "deep folders": (lambda path: (path / "/".join("d" * MAX_DEPTH)).mkdir(parents=True), "folders deep"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_cannot_be_followed_is_refused_by_name(
    kind: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, why = ODD[kind]
    make(tree / "sub" / "odd")
    assert cli.main(["fill", f"file://{tree}", str(tmp_path / "to")]) == 1
    said = capsys.readouterr().err
    assert f"{tree}/sub/odd" in said
    assert why in said
    assert not (tmp_path / "to").exists()
    assert filled(f"file://{tree}", tmp_path / "to", "--exclude", "sub/odd", "--exclude", "sub/odd/") == PLAIN


@pytest.mark.slow
def test_what_may_not_be_read_is_refused_by_name(tree: Path) -> None:
    """As another user, if we are the one who may read everything."""
    (tree / "sub" / "w.bin").chmod(0)
    (tree / "closed").mkdir(mode=0)
    for folder in (tree, *tree.parents):
        if str(folder).startswith("/tmp/") and folder.stat().st_uid == os.getuid():  # only ours
            folder.chmod(0o755)
    code = (
        "import os, sys\n"
        "from actors.errors import SourceDenied\nfrom actors.sources.local_files import local_listing\n"
        "from actors.manifest import ModelSource\n"
        "os.getuid() or os.setuid(65534)\n"
        "for exclude in ((), ('closed/',)):\n"
        "    try: local_listing(ModelSource('file://m', exclude=exclude), sys.argv[1])\n"
        "    except SourceDenied as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tree], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    assert f"{tree}/closed" in first
    assert f"{tree}/sub/w.bin cannot be read: it may not be read" in second


def test_what_a_pattern_leaves_out_is_not_looked_at(tree: Path) -> None:
    (tree / "sub" / "odd").symlink_to("absent")
    found = local_listing(ModelSource(f"file://{tree}", include=("*.json",)), str(tree))
    assert {Path(name).name for name in found} == {"config.json", "w.bin"}


def test_an_archive_is_listed_whatever_is_wanted_of_its_members(tmp_path: Path) -> None:
    subprocess.run(["tar", "-C", "/", "-cf", tmp_path / "m.tar", "etc/hostname", "etc/hosts"], check=True)
    assert filled(f"file://{tmp_path}/m.tar", tmp_path / "to", "--include", "etc/hosts").keys() == {"etc/hosts"}


# Object stores


def info(size: int | None = 1, kind: str = "file", **more: Any) -> dict[str, Any]:
    return {"type": kind, "size": size, **more}


@pytest.mark.parametrize(
    ("found", "paths"),
    [
        pytest.param({"b/m/a": info(), "b/m/c/d": info()}, {"a": "b/m/a", "c/d": "b/m/c/d"}, id="keys"),
        pytest.param({"b/m/a": info(), "b/m/c/": info(0)}, {"a": "b/m/a"}, id="a folder's marker"),
        pytest.param({"b/m/1": info(0), "b/m/1/a": info()}, {"1/a": "b/m/1/a"}, id="an empty key beside a prefix"),
        pytest.param(
            {"b/m/1/2": info(0), "b/m/1": info(0), "b/m/1/2/3/a": info()}, {"1/2/3/a": "b/m/1/2/3/a"}, id="several"
        ),
        pytest.param({"b/m/e": info(0), "b/m/a": info()}, {"e": "b/m/e", "a": "b/m/a"}, id="an empty file"),
        pytest.param({"b/m//a": info()}, {"a": "b/m//a"}, id="an empty part first"),
        pytest.param({"b/m/c//d///a": info()}, {"c/d/a": "b/m/c//d///a"}, id="empty parts within"),
        pytest.param({"b/mm/a": info(), "b/m/a": info()}, {"a": "b/m/a"}, id="what begins alike"),
        pytest.param({"b/m": info()}, {"m": "b/m"}, id="one object"),
        pytest.param(
            {"b/m/.localmodel/manifest.json": info(), "b/m/a": info()},
            {".localmodel/manifest.json": "b/m/.localmodel/manifest.json", "a": "b/m/a"},
            id="ours is left to `select`",
        ),
    ],
)
def test_which_keys_are_which_files(found: Mapping[str, Any], paths: dict[str, str]) -> None:
    assert files_of(ModelSource("s3://b/m"), found, "b/m").names == paths


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"b/m/c/": info(5)}, "'b/m/c/', .* ends in a slash, and it holds 5 bytes"),
        ({"b/m/./a": info()}, "'b/m/./a', .* a part of its name is"),
        ({"b/m/../a": info()}, "a part of its name is"),
        ({"b/m/a": info(), "b/m//a": info()}, "'b/m//a', .* 'b/m/a' would be the same file"),
        ({"b/m/c\\a": info()}, "cannot be part of a model: refusing the unsafe file name"),
        ({"b/m/a\0": info()}, "refusing the unsafe file name"),
        ({f"b/m/{'n' * 300}": info()}, "no disk takes"),
        ({"b/m/a": info(None)}, "'b/m/a', .* its size is not known"),
        ({"b/m/a": info(0, "symlink")}, r"neither a file nor a folder \(symlink\)"),
        ({"b/m/a": info(0, "other")}, r"neither a file nor a folder \(other\)"),
        ({"b/m/a": info(blob_tier="Archive")}, "b/m/a is in the storage class Archive"),
    ],
)
def test_keys_that_are_no_files_are_refused_by_name_unless_they_are_left_out(
    found: Mapping[str, Any], why: str
) -> None:
    with pytest.raises(SourceError, match=why) as caught:
        files_of(ModelSource("s3://b/m"), found, "b/m")
    assert not caught.value.retryable
    files_of(ModelSource("s3://b/m", exclude=("*",)), found, "b/m")


KEYS = {
    "m/1": b"",
    "m/1/config.json": b"{}",
    "m//w.bin": b"weights",
    "m/a+b c&d%20é.json": b"1",
    "m/d/": b"",
    "m/ü//x": b"2",
    "m/.localmodel/manifest.json": b"{}",
    "mm/other": b"3",
}


@pytest.mark.slow
def test_a_bucket_of_odd_keys_is_filled_over_several_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3(KEYS, page=2) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        assert filled("s3://bucket/m", tmp_path / "to") == {
            "1/config.json": b"{}",
            "w.bin": b"weights",
            "a+b c&d%20é.json": b"1",
            "ü/x": b"2",
        }


@pytest.mark.slow
def test_a_bucket_that_lists_a_file_as_a_folder_says_so() -> None:
    with s3({"m/1": b"x", "m/1/a": b"y"}) as server:
        with pytest.raises(SourceError, match="'1' both as a file and as a folder: leave one of them out"):
            resolve(ModelSource("s3://bucket/m"), SourceOptions(server.env))
        found = resolve(ModelSource("s3://bucket/m", exclude=("1/",)), SourceOptions(server.env))
        assert [file.path for file in found.manifest.files] == ["1"]


# What fsspec walks


Folders = Mapping[str, list[dict[str, Any]] | Exception]


class Walked(AbstractFileSystem):  # type: ignore[misc]  # has no types
    """A filesystem of fsspec that has no `find` of its own."""

    def __init__(self, folders: Folders) -> None:
        super().__init__(skip_instance_cache=True)
        self.folders = folders

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        found = self.folders[path]
        if isinstance(found, Exception):
            raise found
        return found

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "directory" if path in self.folders else "file", "size": 3}


def test_a_folder_that_may_not_be_listed_is_an_error_and_no_empty_folder() -> None:
    folders: Folders = {
        "/m": [{"name": "/m/a", "type": "file", "size": 1}, {"name": "/m/c", "type": "directory", "size": 0}],
        "/m/c": PermissionError("not yours"),
    }
    with pytest.raises(PermissionError, match="not yours"):
        listing(Walked(folders), "/m")
    assert listing(Walked({**folders, "/m/c": []}), "/m").keys() == {"/m/a"}
    assert listing(Walked(folders), "/m/a") == {"/m/a": {"name": "/m/a", "type": "file", "size": 3}}


def test_a_root_that_is_absent_or_closed_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        local_listing(ModelSource("file:///x"), str(tmp_path / "absent"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="it is a pipe"):
        local_listing(ModelSource("file:///x"), str(tmp_path / "pipe"))
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SourceDenied, match="circle cannot be read"):
        local_listing(ModelSource("file:///x"), str(tmp_path / "circle"))
