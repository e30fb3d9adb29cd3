"""All files of a repository are listed, over as many pages as it takes, or it is not listed at all."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.errors import SourceError, SourceNotFound, SourceUnsupported
from actors.manifest import ManifestFile, ModelSource
from actors.sources.bounds import bounded
from actors.sources.huggingface_tree import files_of_commit
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve

HUB, SHA1, SHA256 = "https://hub.example", "a" * 40, "b" * 64
TREE = f"{HUB}/api/models/o/r/tree/{SHA1}?recursive=true"


def a_file(path: str, **more: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": 3, "oid": SHA1, **more}


def answer(entries: Any, following: str | None = None, status: int = 200, code: str | None = None) -> Any:
    return SimpleNamespace(
        status_code=status,
        headers={"X-Error-Code": code} if code else {},
        links={"next": {"url": following}} if following else {},
        json=lambda: entries,
    )


class Failed(Exception):
    pass


def listed(
    answers: dict[str, Any],
    siblings: Sequence[Any] | None = None,
    exclude: tuple[str, ...] = (),
    hub: str = HUB,
) -> list[ManifestFile]:
    def check(response: Any) -> None:
        if response.status_code != 200:
            raise Failed("no page")

    with bounded("the hub"):
        return files_of_commit(
            ModelSource("hf://o/r", exclude=exclude), hub, "o/r", SHA1, answers.__getitem__, check, lambda: siblings
        )


def names(files: Sequence[ManifestFile]) -> list[str]:
    return [file.path for file in files]


def test_pages_are_read_to_the_last() -> None:
    second, third = f"{TREE}&cursor=2", f"{TREE}&cursor=3"
    answers = {
        TREE: answer([a_file("a"), {"type": "directory", "path": "d", "size": 0, "oid": SHA1}], second),
        second: answer([a_file("d/b")], f"/api/models/o/r/tree/{SHA1}?recursive=true&cursor=3"),
        third: answer([a_file("c"), a_file("c")]),
    }
    assert names(listed(answers)) == ["a", "d/b", "c"]


def test_of_a_file_in_lfs_the_pointer_is_not_taken_for_the_file() -> None:
    lfs = a_file("w.bin", size=134, lfs={"oid": SHA256, "size": 5 << 30, "pointerSize": 134})
    prefixed = a_file("x.bin", lfs={"oid": f"sha256:{SHA256}", "size": 7})
    assert listed({TREE: answer([lfs, prefixed, a_file("a")])}) == [
        ManifestFile("w.bin", 5 << 30, f"sha256:{SHA256}"),  # type: ignore[arg-type]  # a digest
        ManifestFile("x.bin", 7, f"sha256:{SHA256}"),  # type: ignore[arg-type]  # a digest
        ManifestFile("a", 3, f"git-sha1:{SHA1}"),  # type: ignore[arg-type]  # a digest
    ]


def test_a_mirror_that_hands_on_the_links_of_another_host_is_asked_itself() -> None:
    mirror = "https://mirror.example/hf"
    first = f"{mirror}/api/models/o/r/tree/{SHA1}?recursive=true"
    answers = {first: answer([a_file("a")], f"{TREE}&cursor=2"), f"{first}&cursor=2": answer([a_file("b")])}
    assert names(listed(answers, hub=mirror)) == ["a", "b"]
    elsewhere = {first: answer([], "https://evil.example/steal")}
    with pytest.raises(SourceError, match="goes on at another host"):
        listed(elsewhere, hub=mirror)


@pytest.mark.parametrize(
    ("page", "error", "message"),
    [
        (answer([a_file("a", size=None)]), SourceError, "'a' is listed without its size or its digest"),
        (answer([a_file("a", size="3")]), SourceError, "without its size"),
        (answer([a_file("a", size=-1)]), SourceError, "without its size"),
        (answer([a_file("a", size=True)]), SourceError, "without its size"),
        (answer([a_file("a", oid=None)]), SourceError, "or its digest"),
        (answer([a_file("a", lfs={"size": 3})]), SourceError, "or its digest"),
        (answer([{"type": "file"}]), SourceError, "is not a full hub"),
        (answer({"error": "x"}), SourceError, "is not a full hub"),
        (answer(["a"]), SourceError, "is not a full hub"),
        (answer([{"type": "commit", "path": "sub"}]), SourceUnsupported, r"lists 'sub', .* \('commit'\)"),
        (answer([a_file("a")], TREE), SourceError, "goes in a circle"),
        (answer([], status=500), Failed, "no page"),
        (answer([], status=404, code="RevisionNotFound"), Failed, "no page"),
    ],
)
def test_a_list_that_is_not_whole_is_no_list(page: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        listed({TREE: page})


def test_what_is_left_out_may_be_anything() -> None:
    page = answer([{"type": "commit", "path": "sub"}, a_file("a")])
    assert names(listed({TREE: page}, exclude=("sub",))) == ["a"]


def sibling(name: str, size: int | None = 3) -> Any:
    return SimpleNamespace(rfilename=name, size=size, lfs=None, blob_id=SHA1)


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_mirror_without_a_tree_is_believed_only_where_nothing_can_be_missing(status: int) -> None:
    answers = {TREE: answer(None, status=status)}
    assert names(listed(answers, [sibling("a"), sibling("b")])) == ["a", "b"]
    for siblings in (None, [], [sibling(str(number)) for number in range(1000)]):
        with pytest.raises(SourceUnsupported, match="need not be all") as caught:
            listed(answers, siblings)
        assert caught.value.reason == "ListingIncomplete"
    with pytest.raises(SourceError, match="is not a full hub"):
        listed(answers, [sibling("a", None)])


class Hub(http.server.ThreadingHTTPServer):
    """A repository whose description names as many files as it is told to."""

    def __init__(self, files: int, described: int) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files, self.described = [f"f{number:05}.json" for number in range(files)], described


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {}
        if "/tree/" in path:
            at = int(query.partition("cursor=")[2] or 0)
            body: Any = [a_file(name) for name in self.server.files[at : at + 1000]]
            if at + 1000 < len(self.server.files):
                here = f"http://{self.headers['Host']}{path}"
                headers["Link"] = f'<{here}?recursive=true&cursor={at + 1000}>; rel="next"'
        else:
            shown = [{"rfilename": name} for name in self.server.files[: self.server.described]]
            body = {"id": "o/r", "sha": SHA1, "siblings": shown, "private": False, "gated": False, "tags": []}
        content = json.dumps(body).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": SHA1, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        pass


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[str]:
    server = Hub(*request.param)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("hub", [(1200, 1100), (2500, 0), (1000, 1000), (3, 3), (3, 1)], indirect=True)
def test_the_tree_is_the_truth_whatever_the_description_names(hub: str, request: pytest.FixtureRequest) -> None:
    found = resolve(ModelSource("hf://o/r"), SourceOptions({"HF_ENDPOINT": hub}))
    assert len(found.manifest.files) == request.node.callspec.params["hub"][0]


@pytest.mark.parametrize("hub", [(0, 0)], indirect=True)
def test_a_repository_without_files_is_said(hub: str) -> None:
    with pytest.raises(SourceNotFound, match="it holds no files"):
        resolve(ModelSource("hf://o/r"), SourceOptions({"HF_ENDPOINT": hub}))
