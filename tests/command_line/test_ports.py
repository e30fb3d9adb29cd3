"""Ports of the laptop cluster's servers: nobody listens there, and neither Ray's workers nor clients are given them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from coordinator.dev import ports

RAYS_WORKERS = range(10002, 20000)


@pytest.mark.parametrize(
    ("clients", "first", "last", "count"),
    [
        pytest.param(range(32768, 61000), 20000, 32767, 12768, id="clients have what Linux gives them by default"),
        pytest.param(range(0), 20000, 32767, 12768, id="the kernel does not say"),
        pytest.param(range(30000, 61000), 20000, 29999, 10000, id="clients begin lower"),
        pytest.param(range(9000, 25000), 25000, 32767, 7768, id="clients end lower"),
        pytest.param(range(1024, 65536), 20000, 32767, 12768, id="clients have every port"),
        pytest.param(range(20500, 61000), 20000, 32767, 12768, id="too few are left for two clusters to differ"),
    ],
)
def test_servers_have_ports_that_clients_are_not_given(clients: range, first: int, last: int, count: int) -> None:
    found = ports.server_ports(clients)
    assert (found[0], found[-1], len(found)) == (first, last, count)
    assert not set(found) & set(RAYS_WORKERS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("32768\t60999\n", range(32768, 61000), id="as Linux writes it"),
        pytest.param("", range(0), id="empty"),
        pytest.param("many\n", range(0), id="not two numbers"),
    ],
)
def test_the_ports_of_clients_are_what_the_kernel_says(text: str, expected: range, tmp_path: Path) -> None:
    path = tmp_path / "ip_local_port_range"
    path.write_text(text)
    assert ports.ports_of_clients(path) == expected
    assert ports.ports_of_clients(tmp_path / "absent") == range(0)


def test_a_port_that_somebody_listens_on_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    free, taken = ports.free_ports(2)
    with socket.create_server(("127.0.0.1", taken)):
        monkeypatch.setattr(ports, "server_ports", lambda clients: [free, taken])
        assert ports.free_ports(1) == [free]
        with pytest.raises(OSError, match="only 1 are free, and 2 are needed"):
            ports.free_ports(2)
