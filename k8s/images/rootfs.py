"""The files of one layer, from the Debian this runs in: `rootfs.py base FOLDER`, then of each image what it has beyond
that: `rootfs.py coordinator|ray-node FOLDER --upon BASE`.

Copies files of single packages, never a package's scripts, and leaves out what no process of ours opens. What each
package was is kept in `var/lib/dpkg/status.d`, where scanners look in images without a package manager.

Runs as root in a build, with nothing but the standard library. Files get one time, so that two builds are equal.
"""

from __future__ import annotations

import argparse
import compileall
import filecmp
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
ENVIRONMENT = Path("/opt/localmodel")

BASE = (
    "base-files",
    "ca-certificates",
    "libbz2-1.0",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    f"lib{PYTHON}-minimal",
    f"lib{PYTHON}-stdlib",
    "libsqlite3-0",
    "libssl3t64",
    "libstdc++6",
    "libuuid1",
    "libzstd1",
    "netbase",
    f"{PYTHON}-minimal",
    "python3-minimal",
    "zlib1g",
)
SHELL = ("bash", "libtinfo6", "coreutils")
"""Of the image that KubeRay starts: `/bin/bash -c "ulimit ...; ray start ..."`, and `sleep` while it waits."""

PACKAGES: dict[str, Sequence[str]] = {"base": BASE, "coordinator": (), "ray-node": SHELL}
PROGRAMS = {f"/usr/bin/{PYTHON}", "/usr/bin/python3", "/usr/bin/bash", "/usr/bin/sleep"}

LEFT_OUT = (
    "/usr/share/bash",
    "/usr/share/binfmts",
    "/usr/share/bug",
    "/usr/share/ca-certificates",
    "/usr/share/doc-base",
    "/usr/share/gcc",
    "/usr/share/gdb",
    "/usr/share/info",
    "/usr/share/lintian",
    "/usr/share/locale",
    "/usr/share/man",
    "/usr/share/menu",
    "/usr/share/pixmaps",
    "/usr/share/python3",
    "/usr/lib/valgrind",
    "/etc/ca-certificates",
    "/etc/skel",
    "/etc/update-motd.d",
    f"/usr/lib/{PYTHON}/ensurepip",
    f"/usr/lib/{PYTHON}/idlelib",
    f"/usr/lib/{PYTHON}/lib2to3",
    f"/usr/lib/{PYTHON}/pydoc_data",
    f"/usr/lib/{PYTHON}/test",
    f"/usr/lib/{PYTHON}/tkinter",
    f"/usr/lib/{PYTHON}/turtle.py",
)
COMMANDS = {
    "base": {"localmodel", "python", "python3", PYTHON},
    "coordinator": {"localmodel-manager"},
    "ray-node": {"ray"},
}
"""Of what packages put beside the interpreter: the commands that somebody runs."""

NOT_RUN = ("coordinator/dev", "ray/jars", "ray/rllib", "ray/llm")
"""Of the site-packages, in no image: the laptop cluster, Java, learning."""

RAYS_OWN = ("ray/dashboard/client", "ray/core/src")
"""Of the site-packages, for Ray nodes alone: the programs that a driver talks to."""

ACCOUNTS = """\
root:x:0:0:root:/root:/usr/sbin/nologin
localmodel:x:1000:1000:localmodel:/tmp:/usr/sbin/nologin
nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUPS = "root:x:0:\nlocalmodel:x:1000:\nnonroot:x:65532:\nnogroup:x:65534:\n"


def wanted(path: str) -> bool:
    """Whether a file of a Debian package goes into the image: of programs those named, of documents licences."""
    if path.startswith(("/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/")):
        return path in PROGRAMS
    if path.startswith("/usr/share/doc/"):
        return path.endswith("/copyright")
    return not any(path == prefix or path.startswith(f"{prefix}/") for prefix in LEFT_OUT)


def files_of(package: str) -> list[str]:
    listed = subprocess.run(["dpkg-query", "--listfiles", package], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if line.startswith("/") and line != "/."]


def copy(source: Path, root: Path) -> None:
    """One file, link or folder at its place below `root`, with its mode and without its privileges."""
    real = Path(os.path.realpath(source.parent)) / source.name  # /lib is a link to /usr/lib
    target = root / str(real).lstrip("/")
    if real.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(real.readlink())
    elif real.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif real.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(real, target)
        target.chmod(real.stat().st_mode & 0o755)


def install(package: str, root: Path) -> None:
    for name in files_of(package):
        path = Path(name)
        if wanted(name) and not (path.is_dir() and not path.is_symlink()):
            copy(path, root)
    about = subprocess.run(["dpkg-query", "--status", package], capture_output=True, text=True, check=True)
    folder = root / "var/lib/dpkg/status.d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / package).write_text(about.stdout)


def merged_usr(root: Path) -> None:
    """/bin, /lib and the like are links into /usr, as Debian has them."""
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink():
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(f"usr/{name}")


def accounts(root: Path) -> None:
    etc = root / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "passwd").write_text(ACCOUNTS)
    (etc / "group").write_text(GROUPS)
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name, mode in {
        "tmp": 0o1777,
        "models": 0o755,
        "root": 0o700,
        "proc": 0o555,
        "sys": 0o555,
        "dev": 0o755,
    }.items():
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)


def environment(root: Path, layer: str, upon: Path | None) -> None:
    """The virtual environment, less what does not run in a cluster, and less what `upon` has already."""
    packages = ENVIRONMENT / "lib" / PYTHON / "site-packages"
    left_out = {packages / name for name in (*NOT_RUN, *(() if layer == "ray-node" else RAYS_OWN))}
    for folder, folders, files in os.walk(ENVIRONMENT):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = [name for name in folders if name != "__pycache__" and Path(folder, name) not in left_out]
        for path in (Path(folder, name) for name in (*files, *links)):
            if path.parent == ENVIRONMENT / "bin" and path.name not in COMMANDS[layer]:
                continue
            if upon is None or not _same(path, upon / str(path).lstrip("/")):
                copy(path, root)
    if layer == "coordinator":
        (root / "manager").symlink_to("opt/localmodel/bin/localmodel-manager")


def _same(one: Path, other: Path) -> bool:
    return other.is_symlink() or (other.exists() and filecmp.cmp(one, other, shallow=False))


def compile_all(root: Path) -> None:
    """Byte code for everything: the root is read-only, so none could be written later. By content, not by time."""
    for folder in (f"usr/lib/{PYTHON}", f"opt/localmodel/lib/{PYTHON}"):
        compileall.compile_dir(
            root / folder,
            maxlevels=30,
            workers=0,  # as many as there are processors
            quiet=2,  # some packages carry templates that are no Python
            stripdir=str(root),
            prependdir="/",
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )


def libraries(root: Path, upon: Path | None) -> None:
    """Leaves the loader's cache in the base. Raises SystemExit for a library that nothing in the image brings."""
    if upon is None:
        subprocess.run(["ldconfig", "-r", str(root)], check=True)
        (root / "var/cache/ldconfig/aux-cache").unlink(missing_ok=True)
    missing = sorted(set(_missing(root, upon or root)))
    if missing:
        raise SystemExit("libraries that are not in the image:\n" + "\n".join(missing))


def _missing(root: Path, base: Path) -> Iterator[str]:
    """Of Python's own extension modules, and of the programs: what the loader finds in neither folder."""
    loader = next(path for path in (base / "usr/lib64", base / "usr/lib") for path in path.glob("ld-linux*"))
    places = [str(path) for each in (root, base) for path in (*each.glob("usr/lib/*-linux-gnu"), each / "usr/lib")]
    modules = root.glob(f"usr/lib/{PYTHON}/lib-dynload/*.so")
    for file in [*modules, *root.glob("usr/bin/*")]:
        if file.is_symlink() or file.name.startswith(("readline.", "_curses", "_tkinter", "_dbm", "_gdbm")):
            continue
        command = [str(loader), "--inhibit-cache", "--library-path", ":".join(places), "--list", str(file)]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in (listed.stdout + listed.stderr).splitlines():
            _, arrow, found = line.partition(" => ")
            if "not found" in line or "cannot open" in line or (arrow and not found.startswith((str(root), str(base)))):
                yield f"/{file.relative_to(root)}: {line.strip()}"


def settle_times(root: Path, epoch: int) -> None:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def build(layer: str, root: Path, upon: Path | None = None) -> None:
    """Leaves the whole layer in `root`, which must not exist; `upon` has the base, and is None for the base itself."""
    root.mkdir(parents=True)
    if upon is None:
        merged_usr(root)
    for package in PACKAGES[layer]:
        install(package, root)
    if upon is None:
        copy(Path("/etc/ssl/certs/ca-certificates.crt"), root)
        accounts(root)
    environment(root, layer, upon)
    compile_all(root)
    libraries(root, upon)
    settle_times(root, int(os.environ.get("SOURCE_DATE_EPOCH") or 0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layer", choices=sorted(PACKAGES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--upon", type=Path, metavar="BASE")
    given = parser.parse_args()
    build(given.layer, given.folder, given.upon)
