"""The fixtures that tests of several folders share; a folder's `conftest.py` imports those that its tests take.

    sample ──served by──► origin ──read by──► resolved, first      node: a disk on which agents may be started
    newer ───pushed to──────┘                 second

A module says in `SAMPLE_BYTES` how large its sample is. One that needs another origin defines its own `origin`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.manifest import ModelSource, Resolved
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.versions import at_revision, next_version
from tests.kit.nodes import URI, Node


@pytest.fixture(scope="module")
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of the `SAMPLE_BYTES` of the module."""
    folder = tmp_path_factory.mktemp("model") / "sample"
    write_sample(folder, request.module.SAMPLE_BYTES)
    return folder


@pytest.fixture
def origin(sample: Path) -> Iterator[Origin]:
    """A hub that serves the sample."""
    with Origin({REPO: sample}) as running:
        yield running


@pytest.fixture
def resolved(origin: Origin) -> Resolved:
    """The sample as a node is told of it."""
    return resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))


@pytest.fixture(scope="module")
def newer(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the next version of the sample."""
    return next_version(sample, tmp_path_factory.mktemp("newer") / "model")


@pytest.fixture
def first(origin: Origin) -> Resolved:
    """The sample as its commit, not its branch, names it."""
    return at_revision(origin, origin.repos[REPO].main.commit)


@pytest.fixture
def second(first: Resolved, origin: Origin, newer: Path) -> Resolved:
    """The next version, which the branch is at now."""
    return at_revision(origin, origin.repos[REPO].push(newer))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A disk; its agents end with the test."""
    with Node(tmp_path / "host") as node:
        yield node
