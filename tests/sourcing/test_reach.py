"""Who may send us where, and how slowly anybody may send: the rules of redirects and of speed, without a network."""

from __future__ import annotations

import io

import pytest

from actors.errors import SourceDenied
from actors.transport.redirects import Reach, check_target, reach_of, reach_of_url
from actors.transport.stall import MinSpeed, TooSlow, _WatchedSocket


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("8.8.8.8", Reach.INTERNET),
        ("2606:4700::1111", Reach.INTERNET),
        ("huggingface.co", Reach.INTERNET),
        ("10.0.0.1", Reach.NETWORK),
        ("172.16.0.1", Reach.NETWORK),
        ("192.168.1.1", Reach.NETWORK),
        ("100.64.0.1", Reach.NETWORK),
        ("fd00::1", Reach.NETWORK),
        ("224.0.0.1", Reach.NETWORK),
        ("::ffff:10.0.0.1", Reach.NETWORK),
        ("127.0.0.1", Reach.HOST),
        ("127.8.8.8", Reach.HOST),
        ("::1", Reach.HOST),
        ("::ffff:127.0.0.1", Reach.HOST),
        ("0.0.0.0", Reach.HOST),
        ("169.254.169.254", Reach.HOST),
        ("fe80::1%eth0", Reach.HOST),
        ("localhost", Reach.HOST),
        ("metadata.localhost", Reach.HOST),
        ("64:ff9b::8.8.8.8", Reach.INTERNET),
        ("64:ff9b::10.0.0.1", Reach.NETWORK),
        ("64:ff9b::7f00:1", Reach.HOST),
        ("2002:7f00:1::", Reach.HOST),
    ],
)
def test_who_can_see_an_address(host: str, expected: Reach) -> None:
    assert reach_of(host) is expected


def test_a_name_is_as_public_as_its_least_public_address() -> None:
    assert reach_of_url("http://localhost:80/x") is Reach.HOST
    assert reach_of_url("http://no-such-host.invalid/x") is Reach.INTERNET


@pytest.mark.parametrize(
    ("url", "target", "followed"),
    [
        ("http://a/x", "http://b/x", True),
        ("http://a/x", "https://b/x", True),
        ("https://a/x", "https://b/x", True),
        ("https://a/x", "http://a/x", False),
        ("http://a/x", "file:///etc/passwd", False),
        ("http://a/x", "ftp://b/x", False),
        ("http://a/x", "gopher://b/x", False),
        ("http://a/x", "s3://b/x", False),
        ("http://127.0.0.1/x", "http://169.254.169.254/x", False),
        ("http://127.0.0.1/x", "http://[::ffff:169.254.169.254]/x", False),
        ("http://127.0.0.1/x", "http://[fd00:ec2::254]/x", False),
        ("http://169.254.169.254/x", "http://169.254.169.254/y", True),
    ],
)
def test_which_schemes_a_redirect_may_lead_to(url: str, target: str, followed: bool) -> None:
    if followed:
        check_target(url, target)
        return
    with pytest.raises(SourceDenied, match=r"redirects to .*, refused") as caught:
        check_target(url, target)
    assert caught.value.reason == "RedirectRefused"


class Trickle(io.RawIOBase):
    """Gives so many bytes, each time after so many seconds of `now`."""

    def __init__(self, count: int, after_s: float) -> None:
        self.now = 0.0
        self._count, self._after_s = count, after_s

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as BufferedReader calls it
        self.now += self._after_s
        return min(self._count, len(buffer))


def watched(trickle: Trickle, bytes_per_s: float = 1000) -> io.BufferedReader:
    least = MinSpeed(bytes_per_s, window_s=30)
    return io.BufferedReader(_WatchedSocket(trickle, trickle.readinto, least, lambda: trickle.now))


def test_a_byte_now_and_then_is_too_slow() -> None:
    trickle = Trickle(1, after_s=5)
    with pytest.raises(TooSlow, match=r"sent 6 bytes in 30.0 s"):
        watched(trickle).read(1 << 20)
    assert trickle.now == 35, "the wait for the first byte is not counted"


def test_what_comes_steadily_is_not() -> None:
    assert len(watched(Trickle(1000, after_s=0.9)).read(1 << 18)) == 1 << 18
    assert len(watched(Trickle(1, after_s=1), bytes_per_s=0).read(300)) == 300


def test_our_own_time_is_not_the_servers() -> None:
    trickle = Trickle(8192, after_s=0.001)
    reader = watched(trickle)
    for _ in range(100):
        assert len(reader.read(8192)) == 8192
        trickle.now += 60
