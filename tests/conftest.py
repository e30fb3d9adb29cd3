"""Every test sees the same empty surroundings, whatever the shell it is started from has set."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.redaction import forget

_FOREIGN = ("HF_", "HUGGING", "AWS_", "KUBECONFIG", "RAY_", "LOCALMODEL_", "POD_NAMESPACE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def pytest_configure() -> None:
    """No credentials, no proxies and no cluster of the person who runs the tests, and no signal that it ignores.

    Before any test module is imported: Ray reads its `RAY_*` variables when it is imported, and never again. What is
    started in the background of a shell, or with `nohup`, ignores signals, and so would each process of a test.
    """
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)
    for name in list(os.environ):
        if name.startswith(_FOREIGN) or name.upper() in _PROXIES:
            del os.environ[name]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(16)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no worker is left with one when all others have ended.

    They mostly wait for images and for processes of their own. Files that only compute are short, and fill the end.
    """
    kinds = (("images",), ("e2e", "ray"))
    place: dict[Path, int] = {}
    for item in items:
        own = next((at for at, names in enumerate(kinds) if any(map(item.get_closest_marker, names))), len(kinds))
        place[item.path] = min(own, place.get(item.path, own))
    items.sort(key=lambda item: place[item.path])


@pytest.fixture(autouse=True, scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No home of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _no_secrets_known() -> None:
    """The credentials of one test are plain words in the next."""
    forget()
