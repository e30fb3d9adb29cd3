"""Events: what stands in the API server after they were recorded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actors.sources.options import SourceOptions
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.trial.waiting import eventually
from coordinator.kube import events as events_module
from coordinator.kube.events import Quota, Recorder
from coordinator.kube.interface import EVENTS, Denied, KubeError, NotFound, Object, Unreachable
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, Ref

LLAMA = Ref(CACHES, "llama", uid="uid-1")
TEAM = Ref(NAMESPACE_CACHES, "llama", namespace="team", uid="uid-2")


class Time:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.s)


@pytest.fixture
def kube() -> FakeKube:
    return FakeKube()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def recorder(kube: FakeKube, time: Time) -> Iterator[Recorder]:
    recorder = Recorder(kube, instance="pod-1", clock=time, now=time.now)
    yield recorder
    recorder.close()


def written(kube: FakeKube, recorder: Recorder) -> list[Object]:
    """Every Event, once all that was said is written."""
    assert recorder.close()
    return kube.list(EVENTS)[0]


def test_an_event_is_where_and_what_kubectl_describe_looks_for(kube: FakeKube, recorder: Recorder) -> None:
    recorder.event(LLAMA, "Normal", "Ready", "3 of 3 nodes hold the model")
    (found,) = written(kube, recorder)
    metadata: dict[str, Any] = found["metadata"]
    assert (metadata["namespace"], metadata["name"].rpartition(".")[0]) == ("default", "llama")
    expected = {
        "involvedObject": {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "LocalModelCache",
            "name": "llama",
            "uid": "uid-1",
        },
        "type": "Normal",
        "reason": "Ready",
        "message": "3 of 3 nodes hold the model",
        "source": {"component": "localmodel"},
        "reportingComponent": "localmodel",
        "reportingInstance": "pod-1",
        "firstTimestamp": "2026-01-01T00:00:00Z",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "count": 1,
    }
    assert {key: found[key] for key in expected} == expected


def test_an_event_about_a_namespaced_object_lives_beside_it(kube: FakeKube, recorder: Recorder) -> None:
    recorder.event(TEAM, "Normal", "Ready", "done")
    (found,) = written(kube, recorder)
    assert (found["metadata"]["namespace"], found["involvedObject"]["namespace"]) == ("team", "team")


def test_what_is_said_again_is_counted(kube: FakeKube, recorder: Recorder, time: Time) -> None:
    for _ in range(3):
        recorder.event(LLAMA, "Warning", "DownloadFailed", "refused")
        time.s += 60
    (found,) = written(kube, recorder)
    assert (found["count"], found["firstTimestamp"], found["lastTimestamp"]) == (
        3,
        "2026-01-01T00:00:00Z",
        "2026-01-01T00:02:00Z",
    )


def test_another_message_or_object_is_another_event(kube: FakeKube, recorder: Recorder) -> None:
    recorder.event(LLAMA, "Warning", "DownloadFailed", "refused")
    recorder.event(LLAMA, "Warning", "DownloadFailed", "timed out")
    recorder.event(TEAM, "Warning", "DownloadFailed", "refused")
    assert [found["count"] for found in written(kube, recorder)] == [1, 1, 1]


def test_an_event_that_expired_on_the_server_is_written_anew(kube: FakeKube, recorder: Recorder) -> None:
    recorder.event(LLAMA, "Normal", "Ready", "done")
    eventually(lambda: kube.list(EVENTS)[0], timeout_s=10, every_s=0.01)
    kube.erase()
    recorder.event(LLAMA, "Normal", "Ready", "done")
    assert [found["count"] for found in written(kube, recorder)] == [1]


def test_one_object_cannot_flood_and_another_is_still_heard(kube: FakeKube, recorder: Recorder) -> None:
    for index in range(100):
        recorder.event(LLAMA, "Normal", "Chatty", f"number {index}")
    recorder.event(TEAM, "Normal", "Ready", "done")
    found = written(kube, recorder)
    assert sorted(each["reason"] for each in found) == ["Chatty"] * 25 + ["Ready"]


def test_a_bucket_refills_one_token_at_a_time() -> None:
    quota = Quota(burst=2, refill_s=300)
    told = [(at, quota.take(("a",), at)) for at in (0.0, 0.0, 0.0, 299.0, 301.0, 302.0)]
    assert told == [(0.0, True), (0.0, True), (0.0, False), (299.0, False), (301.0, True), (302.0, False)]


@pytest.mark.slow
def test_an_outage_delays_events_and_loses_none(kube: FakeKube, time: Time) -> None:
    kube.fail(Unreachable("away"))
    recorder = Recorder(kube, clock=time, now=time.now)
    recorder.event(LLAMA, "Normal", "Resolved", "first")
    recorder.event(LLAMA, "Normal", "Ready", "second")
    eventually(lambda: kube.writes, timeout_s=10, every_s=0.01)
    kube.fail(None)
    eventually(lambda: len(kube.list(EVENTS)[0]) == 2, timeout_s=10, every_s=0.01)
    assert [found["message"] for found in written(kube, recorder)] == ["first", "second"]


def test_a_refused_event_is_dropped_and_the_next_is_written(kube: FakeKube, recorder: Recorder) -> None:
    kube.fail(Denied("events is forbidden", status=403))
    recorder.event(LLAMA, "Normal", "Resolved", "first")
    eventually(lambda: kube.writes, timeout_s=10, every_s=0.01)
    kube.fail(None)
    recorder.event(LLAMA, "Normal", "Ready", "second")
    assert [found["message"] for found in written(kube, recorder)] == ["second"]


@pytest.mark.parametrize(
    ("ref", "error", "warns"),
    [
        (TEAM, Denied("unable to create new content in namespace team because it is being terminated", status=403), 0),
        (TEAM, NotFound('namespaces "team" not found', status=404), 0),
        (TEAM, Denied("events is forbidden", status=403), 1),
        (LLAMA, NotFound('namespaces "default" not found', status=404), 1),
    ],
)
def test_a_namespace_that_goes_is_no_reason_to_warn(
    kube: FakeKube, recorder: Recorder, caplog: pytest.LogCaptureFixture, ref: Ref, error: KubeError, warns: int
) -> None:
    kube.fail(error)
    with caplog.at_level("INFO"):
        recorder.event(ref, "Normal", "Removed", "the copy has gone")
        recorder.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns


def test_closing_during_an_outage_does_not_wait_for_its_end(kube: FakeKube, recorder: Recorder) -> None:
    kube.fail(Unreachable("away"))
    for index in range(20):
        recorder.event(LLAMA, "Normal", "Lost", f"{index}")
    assert recorder.close(5.0)


def test_a_full_queue_drops_and_does_not_block(kube: FakeKube, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_QUEUED", 3)
    kube.fail(Unreachable("away"))
    recorder = Recorder(kube, clock=time, now=time.now)
    for index in range(50):
        recorder.event(LLAMA, "Normal", "Many", f"{index}")
    kube.fail(None)
    assert 1 <= len(written(kube, recorder)) <= 4


def test_names_and_messages_are_cut_to_what_the_api_server_takes(kube: FakeKube, recorder: Recorder) -> None:
    recorder.event(Ref(CACHES, "a" * 253), "Normal", "Long", "m" * 5000)
    (found,) = written(kube, recorder)
    assert (len(found["metadata"]["name"]), len(found["message"])) == (253, 1024)
    assert found["involvedObject"]["name"] == "a" * 253


def test_an_event_shows_no_secret_whoever_words_it(kube: FakeKube, recorder: Recorder) -> None:
    SourceOptions({"HF_TOKEN": "a-token-of-somebody"})
    text = (
        "spec.storage: input_value={'session_token': 'its-own', 'note': 'a-token-of-somebody'}; https://u:p@h/x?sig=1"
    )
    recorder.event(LLAMA, "Warning", "InvalidObject", text)
    (found,) = written(kube, recorder)
    assert found["message"] == "spec.storage: input_value={'session_token': …, 'note': '…'}; https://h/x"
