"""What a node agent says of a committed copy: that it is there, since when, and what is wrong with it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from actors.disk.marker import Marker
from actors.manifest import StorageKey
from actors.messages import ModelReport, Phase
from actors.scrub.record import Record, describe


def of_copy(key: StorageKey, marker: Marker, phase: Phase, record: Record | None = None) -> ModelReport:
    """Nothing is under way at it. A damaged one is Failed."""
    manifest = marker.manifest
    report = ModelReport(
        key=key,
        phase=phase,
        selection=manifest.source.selection,
        bytes_total=manifest.total_bytes,
        bytes_done=manifest.total_bytes,
        bytes_from_origin=marker.moved.from_origin,
        bytes_from_peers=marker.moved.from_peers,
        bytes_from_other_zones=marker.moved.from_other_zones,
        manifest_digest=manifest.digest,
        revision=manifest.revision,
        verified=Counter(marker.verified.values()),
        started_at=marker.started_at,
        finished_at=marker.finished_at,
        wrong_peers=marker.moved.wrong_peers,
        wrong_readers=marker.moved.wrong_readers,
    )
    if record is None:
        return report
    report = replace(report, verified_at=record.verified_at, repaired=record.repaired, repaired_at=record.repaired_at)
    return of_repair(replace(report, phase=Phase.FAILED), marker, record.damage) if record.damage else report


def of_repair(report: ModelReport, marker: Marker, damage: Mapping[str, str]) -> ModelReport:
    """What is said of the repair of this copy, and what it is that is repaired."""
    report = replace(report, damage=describe(damage))
    if report.attempt:
        return report
    total = marker.manifest.total_bytes
    lost = sum(file.size for file in marker.manifest.files if file.path in damage)
    return replace(report, bytes_total=total, bytes_done=total - lost)
