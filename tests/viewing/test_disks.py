"""The fate of a model that lies on a disk, by the names and sizes that `localmodel inspect --json` found there."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.errors import Failure
from actors.manifest import storage_key
from actors.messages import NodeName
from coordinator.dev.trial.builders import a_cache, a_group, a_local_node, a_node
from coordinator.plan.admission import Known
from coordinator.plan.reading import read_cache, read_local_node, read_node, read_node_group
from coordinator.view.adoption import Answer, Outcome, rows
from coordinator.view.disks import Lying, read_disk

OWNER = "uid-of-kube-system"
LLAMA = a_cache("llama")
KEY = storage_key(LLAMA.uri)
MODEL = {"config.json": 2, "a/weights": 5 << 20}
RIGHT = Answer(sum(MODEL.values()), MODEL)
DENIED = Answer(failure=Failure("SourceDenied", "no", retryable=False))
BUSY = Answer(failure=Failure("SourceThrottled", "later"))
A, F, R = Outcome.ADOPT, Outcome.FETCH, Outcome.REFUSE

CASES: dict[str, tuple[Lying | None, Answer | None, Outcome, str]] = {
    "all of it": (Lying(files=MODEL), RIGHT, A, "2 of 2 files have their size"),
    "a file is partial": (
        Lying(files=MODEL | {"a/weights": 7}),
        RIGHT,
        A,
        "1 of 2 files have their size, 5Mi is fetched",
    ),
    "a file is missing": (Lying(files={"config.json": 2}), RIGHT, A, "1 of 2 files have their size, 5Mi is fetched"),
    "files of KServe's downloader, too": (
        Lying(files=MODEL | {".cache/huggingface/x": 1}),
        RIGHT,
        A,
        "2 of 2 files have their size; 1 other files are set aside",
    ),
    "nothing of the model": (Lying(files={"other": 1}), RIGHT, F, "none of the 1 files in its folder are of the model"),
    "no folder, whatever KServe says": (None, RIGHT, F, "its folder is not there, or empty"),
    "folders alone": (Lying(files={}), RIGHT, F, "its folder is not there, or empty"),
    "our own copy": (Lying(owner=OWNER), RIGHT, A, "a node agent of this cluster has filled it"),
    "a copy of another cluster": (Lying(owner="other"), RIGHT, R, "PathOccupied: its folder has the marker of another"),
    "a source that is busy": (Lying(files=MODEL), BUSY, A, "its folder has 2 files"),
    "a source that was not asked": (Lying(files=MODEL), None, A, "its folder has 2 files"),
    "a source that refuses": (Lying(files=MODEL), DENIED, R, "SourceDenied: no"),
    "an archive": (Lying(files={"model.tar": 9}), Answer(9), A, "its folder has 1 files"),
    "a source without digests": (
        Lying(files=MODEL),
        Answer(sum(MODEL.values()), MODEL, undigested=2),
        F,
        "the source has no digest of 2 files",
    ),
    "too many files": (Lying(), RIGHT, A, "more files than are named"),
}


def known(**detail: str) -> Known:
    """KServe says Downloaded; `detail` is what an agent of ours says of it, if any does."""
    models = [{"name": "llama", **detail}] if detail else []
    local = a_local_node("n1").listing(LLAMA).with_status(modelStatus={"llama": "ModelDownloaded"}, models=models)
    return Known(
        caches={LLAMA.key: read_cache(LLAMA.json)},
        groups={"gpu": read_node_group(a_group().json)},
        nodes={NodeName("n1"): read_node(a_node("n1").json)},
        local_nodes={NodeName("n1"): read_local_node(local.json)},
    )


@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_was_looked_at_counts(case: str) -> None:
    lying, answer, outcome, why = CASES[case]
    disk = {} if lying is None else {KEY: lying}
    (row,) = rows(known(), {LLAMA.key: answer} if answer else {}, {NodeName("n1"): disk}, OWNER)
    assert row.outcome is outcome
    assert why in row.why


def test_of_a_node_that_nobody_looked_at_kserve_is_believed() -> None:
    (row,) = rows(known(), {LLAMA.key: RIGHT}, {NodeName("n2"): {}}, OWNER)
    assert (row.outcome, row.why) == (A, "KServe has downloaded it")


@pytest.mark.parametrize(
    ("detail", "answer", "outcome", "why"),
    [
        (
            {},
            Answer(3 << 20, MODEL, undigested=1),
            F,
            "3Mi: the source has no digest of one file, to check what is there",
        ),
        ({"phase": "Ready"}, Answer(3 << 20, MODEL, undigested=1), A, "a node agent of this cluster holds it"),
        (
            {"phase": "Failed", "reason": "PathOccupied"},
            RIGHT,
            F,
            "a node agent of this cluster says Failed (PathOccupied)",
        ),
    ],
)
def test_a_node_agent_that_has_reported_is_believed_before_kserve(
    detail: dict[str, str], answer: Answer, outcome: Outcome, why: str
) -> None:
    (row,) = rows(known(**detail), {LLAMA.key: answer}, {}, OWNER)
    assert (row.outcome, row.why) == (outcome, why)


def test_two_roots_of_a_node_are_two_lines() -> None:
    def root(*models: dict[str, Any]) -> str:
        return json.dumps({"kind": "root", "models": list(models)})

    found = read_disk(
        root({"key": "k1", "found": {"x": 1}}) + "\nnoise\n" + root({"key": "k2", "uri": "u", "owner": "o"})
    )
    assert found == {"k1": Lying(files={"x": 1}), "k2": Lying(owner="o")}


@pytest.mark.parametrize("text", ["", "no json", '{"kind": "model"}', "{"])
def test_what_is_no_look_at_a_root_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_disk(text)
