"""A rollout among real agents while they and the coordinator are killed: each node serves one whole version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.rolling_agents import roll


@pytest.mark.slow
def test_whoever_is_killed_during_a_rollout_readers_see_one_whole_version(tmp_path: Path) -> None:
    seen = roll(tmp_path, sample_bytes=8 << 20, kills=3, seed=1)
    assert seen.wrong == []
    assert seen.looks > 100
    assert seen.most_let == 1
