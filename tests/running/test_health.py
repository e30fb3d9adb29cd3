"""The probe and metrics servers, asked over real sockets; the checks and addresses they are made of."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator

import pytest

from coordinator.cli.health import Response, Server, parse_address, run_checks


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    def broken() -> Response:
        raise RuntimeError("a bug")

    routes = {
        "/healthz": lambda: Response(b"ok\n"),
        "/readyz": lambda: run_checks({"informers": lambda: None, "ray": lambda: "no node has joined"}),
        "/broken": broken,
    }
    server = Server("127.0.0.1:0", routes)
    yield server
    server.close()


def ask(port: int, path: str, *, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_a_route_answers(server: Server) -> None:
    assert ask(server.port, "/healthz") == (200, "ok\n")


def test_a_query_does_not_matter(server: Server) -> None:
    assert ask(server.port, "/healthz?verbose") == (200, "ok\n")


def test_head_has_no_body(server: Server) -> None:
    assert ask(server.port, "/healthz", method="HEAD") == (200, "")


def test_what_is_not_ready_is_named(server: Server) -> None:
    assert ask(server.port, "/readyz") == (503, "[+] informers\n[-] ray: no node has joined\nnot ready\n")


def test_an_unknown_path_is_not_found(server: Server) -> None:
    assert ask(server.port, "/secret") == (404, "not found\n")


def test_a_probe_that_fails_is_an_answer(server: Server) -> None:
    assert ask(server.port, "/broken") == (500, "internal error\n")


def test_a_client_that_says_nothing_does_not_keep_others_waiting(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask(server.port, "/healthz") == (200, "ok\n")


def test_all_checks_passing_is_ready() -> None:
    assert run_checks({"informers": lambda: None}) == Response(b"[+] informers\nok\n", 200)


@pytest.mark.slow
def test_an_empty_host_means_every_interface() -> None:
    server = Server(":0", {"/healthz": lambda: Response(b"ok\n")})
    try:
        assert ask(server.port, "/healthz", host="127.0.0.1") == (200, "ok\n")
    finally:
        server.close()


@pytest.mark.parametrize("address", ["", "0"])
def test_zero_and_nothing_mean_nowhere(address: str) -> None:
    server = Server(address, {})
    assert server.port == 0
    server.close()


def test_a_port_in_use_is_said_in_words(server: Server) -> None:
    with pytest.raises(OSError, match=rf"cannot listen on 127.0.0.1:{server.port}: "):
        Server(f"127.0.0.1:{server.port}", {})


ADDRESSES = {
    ":8080": ("", 8080),
    "127.0.0.1:8080": ("127.0.0.1", 8080),
    "localhost:0": ("localhost", 0),
    "[::1]:80": ("::1", 80),
    "": None,
    "0": None,
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses(text: str) -> None:
    assert parse_address(text) == ADDRESSES[text]


@pytest.mark.parametrize("text", ["8080", "localhost", ":http", ":70000", "::1:80", "1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not host:port|brackets"):
        parse_address(text)
