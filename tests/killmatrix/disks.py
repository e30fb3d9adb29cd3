"""Disks that lose power, fill up, fail, or come back with something else on them than was written."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from actors.disk.store import MARKER
from tests.killmatrix.nodes import SIZE, Nodes, in_flight_mib
from tests.killmatrix.trial import MIB, Fault, NotHere

VICTIM = "node-1"
_SHUTDOWN = 0x8004587D
"""The kernel's `FS_IOC_SHUTDOWN`: nothing more reaches the device; with flag 2 not even the filesystem's journal."""
_OTHER_BOOT = """
mount --bind "$0" /proc/sys/kernel/random/boot_id
exec "$@"
"""


def an_ext4(nodes: Nodes) -> None:
    """The victim's root is an ext4 on a loop device, and it sees a boot id that the fault can change."""
    disk = nodes.work / "disk"
    nodes.root(VICTIM).mkdir(parents=True)
    disk.touch()
    os.truncate(disk, 4 * SIZE)
    _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", str(disk))
    _mount(nodes, "ext4", _plug_in(nodes, disk))
    boot = nodes.work / "boot_id"
    boot.write_text("first-boot\n")
    nodes.prefix[VICTIM] = ["unshare", "--mount", "sh", "-ec", _OTHER_BOOT, str(boot)]


def a_tmpfs(options: str) -> Callable[[Nodes], None]:
    def prepare(nodes: Nodes) -> None:
        nodes.root(VICTIM).mkdir(parents=True)
        _mount(nodes, "tmpfs", "tmpfs", options)

    return prepare


@contextmanager
def power_loss(nodes: Nodes) -> Iterator[None]:
    """What the device had is all that is left; the agent dies with it, and starts after a reboot."""
    nodes.run_for(nodes.rng.uniform(0, 0.5))
    shut_down(nodes.root(VICTIM))
    nodes.kill(VICTIM)
    mount_what_it_had(nodes)
    (nodes.work / "boot_id").write_text("next-boot\n")
    nodes.restart(VICTIM)
    yield


@contextmanager
def a_disk_that_dies_and_is_mounted_again(nodes: Nodes) -> Iterator[None]:
    shut_down(nodes.root(VICTIM))
    yield
    nodes.kill(VICTIM)
    mount_what_it_had(nodes)
    nodes.restart(VICTIM)


@contextmanager
def full(nodes: Nodes) -> Iterator[None]:
    """Somebody else takes what was free."""
    filler = nodes.root(VICTIM) / "filler"
    with filler.open("wb") as file:
        left = os.statvfs(filler).f_bavail * os.statvfs(filler).f_frsize
        os.posix_fallocate(file.fileno(), 0, max(left - (64 << 10), 1))
    nodes.kill(VICTIM)
    shutil.rmtree(nodes.root(VICTIM) / ".localmodel", ignore_errors=True)
    with filler.open("ab") as file:
        left = os.statvfs(filler).f_bavail * os.statvfs(filler).f_frsize
        os.posix_fallocate(file.fileno(), file.tell(), max(left - (64 << 10), 1))
    nodes.restart(VICTIM)
    yield
    filler.unlink()


@contextmanager
def too_small(nodes: Nodes) -> Iterator[None]:
    """A disk on which it never fitted, until it grows."""
    yield
    _run("mount", "-o", f"remount,size={4 * SIZE}", str(nodes.root(VICTIM)))


@contextmanager
def read_only(nodes: Nodes) -> Iterator[None]:
    nodes.kill(VICTIM)  # what writes keeps the kernel from mounting it read-only
    _run("mount", "-o", "remount,ro", str(nodes.root(VICTIM)))
    nodes.restart(VICTIM)
    yield
    _run("mount", "-o", "remount,rw", str(nodes.root(VICTIM)))


def ingest(nodes: Nodes) -> Path:
    return next((nodes.root(VICTIM) / ".localmodel/ingest").iterdir())


def while_down(change: Callable[[Nodes], None]) -> Callable[[Nodes], AbstractContextManager[None]]:
    """The agent is killed, something happens to its disk, and it starts again."""

    @contextmanager
    def strikes(nodes: Nodes) -> Iterator[None]:
        nodes.kill(VICTIM)
        change(nodes)
        nodes.restart(VICTIM)
        yield

    return strikes


@contextmanager
def a_bit_flips(nodes: Nodes) -> Iterator[None]:
    """Under an agent that reads its copies again, and says what it finds."""
    path = nodes.rng.choice(sorted(nodes.folder(VICTIM).glob("*.safetensors")))
    path.chmod(0o644)
    with path.open("r+b") as file:
        place = nodes.rng.randrange(path.stat().st_size)
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), place)
    nodes.until_damaged(VICTIM)
    yield


def half_a_journal(nodes: Nodes) -> None:
    journal = ingest(nodes) / "journal"
    os.truncate(journal, journal.stat().st_size // 2)


def a_journal_of_junk(nodes: Nodes) -> None:
    (ingest(nodes) / "journal").write_bytes(nodes.rng.randbytes(4096))


def data_of_junk(nodes: Nodes) -> None:
    """A file of the ingest is other bytes of the same length, and the journal does not know."""
    file = max((ingest(nodes) / "data").glob("*.safetensors"), key=lambda path: path.stat().st_blocks)
    file.write_bytes(nodes.rng.randbytes(file.stat().st_size))


def no_data(nodes: Nodes) -> None:
    shutil.rmtree(ingest(nodes) / "data")


def junk_everywhere(nodes: Nodes) -> None:
    """In each folder of ours something that does not belong there."""
    own = nodes.root(VICTIM) / ".localmodel"
    for number, folder in enumerate((own, own / "ingest", own / "trash", own / "scrub", own / "evicted")):
        (folder / "junk").write_bytes(b"\xff\x00junk")
        (folder / f"folder-{number}.json").mkdir()
        (folder / "dangling").symlink_to("/nowhere")


def a_marker_of_junk(nodes: Nodes) -> None:
    marker = nodes.folder(VICTIM) / MARKER
    marker.parent.chmod(0o755)
    marker.chmod(0o644)
    marker.write_bytes(b'{"version": 1, "manifest": [')


def a_file_gone(nodes: Nodes) -> None:
    folder = nodes.folder(VICTIM)
    folder.chmod(0o755)
    nodes.rng.choice(sorted(folder.glob("*.safetensors"))).unlink()


def a_copy_gone(nodes: Nodes) -> None:
    folder = nodes.folder(VICTIM)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    shutil.rmtree(folder)


def mount_what_it_had(nodes: Nodes) -> None:
    """The filesystem that was shut down gives way to a copy of its disk, on a device of its own.

    To mount the same device again is not enough. A neighbour that has made a mount namespace meanwhile (`unshare`,
    `ip netns exec`) holds the old mount in it: the filesystem outlives `umount`, and a second mount of its device is
    the one that was shut down.
    """
    copy = nodes.work / "disk-again"
    _run("cp", "--sparse=always", str(nodes.work / "disk"), str(copy))
    _run("umount", "--lazy", str(nodes.root(VICTIM)))
    _run("mount", "-t", "ext4", _plug_in(nodes, copy), str(nodes.root(VICTIM)))


def _plug_in(nodes: Nodes, disk: Path) -> str:
    """The device that the disk is until the trial ends."""
    device = _run("losetup", "--find", "--show", str(disk)).strip()
    nodes.closing.callback(_run, "losetup", "--detach", device)
    return device


def shut_down(root: Path) -> None:
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", 2))
    finally:
        os.close(descriptor)


def _mount(nodes: Nodes, kind: str, source: str, options: str = "defaults") -> None:
    root = str(nodes.root(VICTIM))
    _run("mount", "-t", kind, "-o", options, source, root)
    nodes.closing.callback(_run, "umount", "--lazy", root)


def _run(*command: str) -> str:
    if os.geteuid() != 0:
        raise NotHere("disks of its own need root: run this as root")
    if shutil.which(command[0]) is None:
        raise NotHere(f"{command[0]} is not installed (Debian: apt-get install e2fsprogs util-linux mount)")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _row(name: str, strikes: Callable[[Nodes], AbstractContextManager[None]], **more: object) -> Fault[Nodes]:
    return Fault("disk", name, strikes, **more)  # type: ignore[arg-type]  # fields by name


_READ_AGAIN = {"LOCALMODEL_SCRUB_INTERVAL_SECONDS": "1", "LOCALMODEL_SCRUB_RATE": "1Gi"}
_REPAIR_MIB = SIZE // 4 // MIB + 1
"""One of four files, at most; what the others hold is theirs to give."""

FAULTS: list[Fault[Nodes]] = [
    _row("power loss in the middle", power_loss, prepare=an_ext4, twice_mib=in_flight_mib(1), short=True),
    _row("power loss when it verifies or commits", power_loss, prepare=an_ext4, at=(0.97, 0.99), twice_mib=8),
    _row("power loss after Ready", power_loss, prepare=an_ext4, at=(1.0, 1.0), twice_mib=_REPAIR_MIB, short=True),
    _row(
        "the disk fails (EIO) and is mounted again",
        a_disk_that_dies_and_is_mounted_again,
        reason="DiskFailing",
        timed=False,
        prepare=an_ext4,
        twice_mib=in_flight_mib(1),
    ),
    _row(
        "the disk is full",
        full,
        reason="InsufficientStorage",
        timed=False,
        prepare=a_tmpfs(f"size={2 * SIZE}"),
        twice_mib=in_flight_mib(1),
        short=True,
    ),
    _row(
        "the disk is too small, and grows",
        too_small,
        reason="InsufficientStorage",
        timed=False,
        prepare=a_tmpfs(f"size={SIZE // 2}"),
        at=(0.0, 0.1),
    ),
    _row(
        "the disk becomes read-only",
        read_only,
        reason="DiskReadOnly",
        timed=False,
        prepare=a_tmpfs(f"size={2 * SIZE}"),
        twice_mib=in_flight_mib(1),
    ),
    _row("half of the journal is lost", while_down(half_a_journal), twice_mib=in_flight_mib(1)),
    _row("the journal is junk", while_down(a_journal_of_junk), twice_mib=in_flight_mib(1), short=True),
    _row("a half-done file is junk", while_down(data_of_junk), twice_mib=in_flight_mib(1) + _REPAIR_MIB),
    _row("the half-done files are gone", while_down(no_data), twice_mib=in_flight_mib(1)),
    _row("junk in every folder of ours", while_down(junk_everywhere), twice_mib=in_flight_mib(1), short=True),
    _row("the marker of a copy is junk", while_down(a_marker_of_junk), at=(1.0, 1.0), twice_mib=0, short=True),
    _row("a bit of a copy flips", a_bit_flips, at=(1.0, 1.0), environment=_READ_AGAIN, twice_mib=_REPAIR_MIB),
    _row("a file of a copy is lost", while_down(a_file_gone), at=(1.0, 1.0), twice_mib=_REPAIR_MIB),
    _row("a whole copy is lost", while_down(a_copy_gone), at=(1.0, 1.0), twice_mib=0),
]
