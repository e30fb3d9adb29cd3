"""Names of modules before there were packages: they still lead where the module is now, and the packages have doors."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from actors.former_names import NOW


@pytest.mark.slow
@pytest.mark.parametrize("before", sorted(NOW))
def test_a_former_name_leads_to_the_module(before: str) -> None:
    now = [import_module(name) for name in NOW[before]]
    sys.modules.pop(before, None)
    with pytest.warns(DeprecationWarning, match=NOW[before][0]):
        found = import_module(before)

    public = next(name for name in vars(now[0]) if not name.startswith("_"))
    assert getattr(found, public) is getattr(now[0], public)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "from actors.agent import AgentSettings, NodeAgent",
        "from actors.peers import PeerServer",
        "from actors.sources import ModelSource",
        "from coordinator.api import StatusKey",
        "from coordinator.dev.origin import Origin",
        "from coordinator.fleet import AgentView",
        "from coordinator.kube import *; HttpKube, SECRETS, load_config",
        "from coordinator.plan import Snapshot",
        "from coordinator.rayfleet import RayFleet",
    ],
)
def test_a_new_process_finds_it(line: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", line], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ImportError):
        import_module("actors.never_was")
    with pytest.raises(ImportError):
        from actors.agent import NeverWas  # noqa: F401  the import is the test


def test_rates_are_still_found_beside_the_back_off() -> None:
    retry, rates = import_module("actors.retry"), import_module("actors.rates")
    assert (retry.RateLimit, retry.RateMeter) == (rates.RateLimit, rates.RateMeter)
    with pytest.raises(ImportError):
        from actors.retry import NeverWas  # noqa: F401  the import is the test
