"""A new version among nodes that hold the one before: what changed is read once, the rest never."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.manifest import Resolved
from actors.messages import Phase
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import Fanout, Place
from coordinator.dev.trial.versions import at_revision, moved_bytes, next_version
from tests.kit.nodes import same_bytes

SAMPLE_BYTES = 8 << 20
NODES = ("node-1", "node-2")


def turn_to(fanout: Fanout, resolved: Resolved) -> None:
    fanout.revise(resolved)

    def there() -> bool:
        found = list(fanout.models().values())
        revision = resolved.manifest.revision
        return all(each is not None and each.phase is Phase.READY and each.revision == revision for each in found)

    fanout.until(there)


@pytest.mark.slow
def test_nodes_share_what_changed_and_go_back_without_a_byte(origin: Origin, sample: Path, tmp_path: Path) -> None:
    first = at_revision(origin, origin.repos[REPO].main.commit)
    newer = next_version(sample, tmp_path / "newer")
    second = at_revision(origin, origin.repos[REPO].push(newer))
    with Fanout(tmp_path / "nodes", first, {name: Place("127.0.0.1") for name in NODES}) as fanout:
        turn_to(fanout, first)
        before = int(origin.stats()["bytes"])
        turn_to(fanout, second)
        changed = moved_bytes(newer)
        assert int(origin.stats()["bytes"]) - before == changed
        reports = [report for report in fanout.models().values() if report is not None]
        assert sum(report.bytes_from_peers for report in reports) == changed
        assert {report.bytes_reused for report in reports} == {second.manifest.total_bytes - changed}
        assert all(same_bytes(fanout.folder(name), newer) for name in NODES)
        turn_to(fanout, first)
        assert int(origin.stats()["bytes"]) - before == changed
        assert all(same_bytes(fanout.folder(name), sample) for name in NODES)
