"""Hosts on one machine: network namespaces with shaped links, and in each a process tree of its own.

    host ── eth0 ══ veth ══ port ── bridge, in a namespace of its own: nothing touches the machine's network
             │                │
          tbf: up          tbf: down

What runs on a host sees its own processes, its own name, its own /dev/shm and an empty disk in memory, and vanishes
with all its children when its first process is killed: that is a power-off. Needs root, iproute2 and util-linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import IO, Any, Self, TypeVar

T = TypeVar("T")

PREFIX = "fanout"
MTU = "9000"
"""Jumbo frames: with small ones, the shaping of eight hosts alone keeps two processors busy."""
_TOOLS = ("ip", "tc", "unshare", "setpriv", "mount", "hostname")
_CLONE_NEWNET = 0x40000000
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_INIT = """
hostname "$1"
mount -t tmpfs -o size=90% tmpfs "$2"
mount -t tmpfs -o size=90% tmpfs /dev/shm
export TMPDIR="$2" HOME="$2"
cd "$2"
shift 2
exec "$@"
"""


def missing() -> str | None:
    """Why no host can be made here; None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run this as root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)} (Debian: apt-get install iproute2 util-linux)" if absent else None


def leftovers() -> list[str]:
    """The namespaces that runs of this module have made and not removed."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    names = [line.split()[0] for line in listed.splitlines() if line]
    return [name for name in names if name.startswith(f"{PREFIX}-")]


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A program on a host, from `Host.start`. `connection` leads to it: its last argument is the descriptor there."""

    host: Host
    connection: Connection[Any, Any]
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """The power goes out."""
        self.process.kill()
        self.process.wait()

    def received_bytes(self) -> int:
        """What has come over the host's link, with all headers, since the host exists."""
        lines = Path(f"/proc/{self.process.pid}/net/dev").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.lstrip().startswith("eth0:"))

    def cpu_s(self) -> float:
        """What this program and all that it started have computed."""
        return _cpu_s(self.process.pid)


class Host:
    """One namespace. `rate` as tc understands it (`200mbit`); None: as fast as the machine is."""

    def __init__(self, name: str, namespace: str, bridge: str, address: str, rate: str | None) -> None:
        self.name, self.address = name, address
        self._namespace, self._bridge, self._port = namespace, bridge, f"port{address.rpartition('.')[2]}"
        _run("ip", "netns", "add", namespace)
        _run("ip", "-n", bridge, "link", "add", self._port, "type", "veth", "peer", "eth0", "netns", namespace)
        _run("ip", "-n", bridge, "link", "set", self._port, "mtu", MTU, "master", "br0", "up")
        _run("ip", "-n", namespace, "address", "add", f"{address}/16", "dev", "eth0")
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
        _run("ip", "-n", namespace, "link", "set", "eth0", "mtu", MTU, "up")
        _run("ip", "-n", namespace, "route", "add", "default", "dev", "eth0")  # programs find their address by it
        self._shaped = False
        self.shape(rate)

    def shape(self, rate: str | None) -> None:
        """From now on the link carries so much each way, with 40 ms of queue, as a switch has."""
        for namespace, device in ((self._namespace, "eth0"), (self._bridge, self._port)):
            where = ("tc", "-n", namespace, "qdisc")
            if rate is not None:
                _run(*where, "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "128kb", "latency", "40ms")
            elif self._shaped:
                _run(*where, "del", "dev", device, "root")
        self._shaped = rate is not None

    @property
    def inside(self) -> list[str]:
        """Put before a command, it runs on this host; its processes and its disk are those of the machine."""
        return ["ip", "netns", "exec", self._namespace]

    def call(self, make: Callable[[], T]) -> T:
        """What `make` returns, called on this host: the sockets it opens, and the threads it starts, belong there."""

        def move_and_make() -> T:
            with (Path("/run/netns") / self._namespace).open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot move to the namespace {self._namespace}")
            return make()

        with ThreadPoolExecutor(1) as mover:  # a namespace is a thread's own
            return mover.submit(move_and_make).result()

    def cut(self, *others: Host) -> None:
        """Nothing goes from here to these, and nobody says so: as with a broken switch."""
        for other in others:
            _run("ip", "-n", self._namespace, "route", "add", "blackhole", f"{other.address}/32")

    def mend(self, *others: Host) -> None:
        """What `cut` did is undone."""
        for other in others:
            _run("ip", "-n", self._namespace, "route", "del", "blackhole", f"{other.address}/32")

    def hide(self, port: int) -> None:
        """Connections to this port get no answer: as with a firewall that drops. The host itself reaches all."""
        _run("ip", "-n", self._namespace, "rule", "add", "ipproto", "tcp", "sport", str(port), "blackhole")

    def start(
        self, arguments: Sequence[str], disk: Path, log: IO[bytes], environment: Mapping[str, str] | None = None
    ) -> Running:
        """The program runs, with an empty disk at `disk`. For the main thread: when it ends, the program does."""
        ours, theirs = socketpair()
        with theirs:
            command = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._namespace]
            command += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
            command += ["sh", "-ec", _INIT, "sh", self.name, str(disk), *arguments, str(theirs.fileno())]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                pass_fds=[theirs.fileno()],
            )
        return Running(self, Connection(ours.detach()), process)

    def remove(self) -> None:
        _run("ip", "netns", "delete", self._namespace)


class Network:
    """A bridge and its hosts; a context manager that leaves nothing behind."""

    def __init__(self, rate: str | None) -> None:
        self.rate = rate
        self.hosts: dict[str, Host] = {}
        self._running: list[Running] = []
        self._name = f"{PREFIX}-{os.getpid()}"

    def __enter__(self) -> Self:
        for name in leftovers():  # of runs that were killed
            if not Path(f"/proc/{name.split('-')[1]}").exists():
                _run("ip", "netns", "delete", name)
        self.disk = Path(tempfile.mkdtemp(prefix=f"{self._name}-"))
        try:
            _run("ip", "netns", "add", self._name)
            _run("ip", "-n", self._name, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", self._name, "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def host(self, name: str) -> Host:
        """The host of this name, made if it is not there."""
        if name not in self.hosts:
            number = len(self.hosts) + 1
            address = f"10.77.{number // 256}.{number % 256}"
            self.hosts[name] = Host(name, f"{self._name}-{name}", self._name, address, self.rate)
        return self.hosts[name]

    @contextlib.contextmanager
    def programs(self) -> Iterator[list[Running]]:
        """To be filled with what is started; none of it runs afterwards."""
        running: list[Running] = []
        self._running = running
        try:
            yield running
        finally:
            self._stop()

    def _stop(self) -> None:
        for each in self._running:
            each.process.kill()
        for each in self._running:
            each.process.wait()
            each.connection.close()
        self._running = []

    def close(self) -> None:
        self._stop()
        for name in leftovers():
            if name == self._name or name.startswith(f"{self._name}-"):
                _run("ip", "netns", "delete", name)
        self.hosts.clear()
        self.disk.rmdir()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _cpu_s(root: int) -> float:
    """User and system time of a process and all its descendants, also of those that are over."""
    times: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdecimal():
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                times[int(folder.name)] = sum(int(each) for each in fields[11:15]) * _TICK_S
                children.setdefault(int(fields[1]), []).append(int(folder.name))
    total, left = 0.0, [root]
    while left:
        pid = left.pop()
        total += times.get(pid, 0.0)
        left += children.get(pid, [])
    return total
