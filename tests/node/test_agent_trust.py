"""What a node reads is what the coordinator lets it read, whatever a location says, and as soon as that changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from actors.addresses import Origins
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest, storage_key
from actors.messages import Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.trust import STRICT, Trust
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from tests.kit.nodes import URI, Node, same_bytes, until, wants
from tests.kit.witness import Witness

SAMPLE_BYTES = 2_000_000
HERE = Trust(STRICT.schemes, Origins.parse("127.0.0.1"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.3:{port}/m.bin", "OriginNotAllowed"),
        ("http://169.254.169.254/latest/meta-data", "OriginNotAllowed"),
        ("http://[::ffff:127.0.0.3]:{port}/m.bin", "OriginNotAllowed"),
        ("file:///proc/self/environ", "SchemeNotAllowed"),
        ("memory://m.bin", "SchemeNotAllowed"),
        ("reference://m.bin::http://127.0.0.1:1/refs.json", "InvalidURI"),
        ("s3://bucket/m.bin", "OriginNotAllowed"),
        ("webhdfs://127.0.0.3:{port}/m.bin", "OriginNotAllowed"),
    ],
)
def test_a_location_that_is_not_allowed_is_not_read(node: Node, url: str, reason: str) -> None:
    with Witness("127.0.0.3") as inside:
        source = ModelSource("hf://a/b")
        manifest = make_manifest(source, None, [ManifestFile("m.bin", 7)])
        place = f"http://127.0.0.3:{inside.port}"
        options = {"anon": True, "endpoint_url": place} if url.startswith("s3") else {}
        resolved = Resolved(manifest, (Location(url.replace("{port}", str(inside.port))),), storage_options=options)
        agent = node.agent()
        agent.reconcile(replace(wants(resolved), trust=HERE))
        failed = until(agent, Phase.FAILED, reason=reason, key=storage_key(source.uri))
        assert failed.failure is not None
        assert not failed.failure.retryable
        assert inside.asked == []


@pytest.mark.slow
def test_a_fill_that_is_under_way_goes_by_what_holds_now(node: Node, tmp_path: Path) -> None:
    """And goes on where it was, once that allows it again."""
    sample = tmp_path / "sample"
    write_sample(sample, SAMPLE_BYTES)
    with Origin({REPO: sample}) as origin:
        resolved = resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        origin.faults.set(Fault(path="*00003*", stall_after_bytes=0))
        agent = node.agent()
        agent.reconcile(replace(wants(resolved), trust=HERE))
        until(agent, Phase.DOWNLOADING)
        agent.reconcile(replace(wants(resolved), trust=STRICT))
        until(agent, Phase.FAILED, reason="OriginNotAllowed")
        origin.faults.set()
        agent.reconcile(replace(wants(resolved), trust=HERE))
        until(agent, Phase.READY)
        assert same_bytes(node.folder(), sample)
