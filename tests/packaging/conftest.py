"""The images, built once for all tests that run them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit import containers


@pytest.fixture(scope="session")
def containers_work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Containers are built and run as `CONTAINERS_CONF` says. Skips, with the reason, where they cannot be."""
    folder = tmp_path_factory.mktemp("containers")
    configuration = folder / "containers.conf"
    configuration.write_text(containers.CONTAINERS_CONF)
    (folder / "probe").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", str(configuration))
        if reason := containers.missing() or containers.probe(folder / "probe"):
            pytest.skip(reason)
        yield


@pytest.fixture(scope="session")
def images(containers_work: None) -> None:
    """Those that a cluster runs are in the store. Unchanged layers come from there, whoever built them."""
    if reason := containers.build("coordinator", "ray-node"):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def dev_images(images: None) -> None:
    if reason := containers.build("coordinator-dev", "ray-node-dev"):
        pytest.skip(reason)
