"""The whole root folder of an image, from the Debian this runs in: `rootfs.py coordinator|ray-node FOLDER`.

Copies files of single packages, never a package's scripts, and leaves out what no process of ours opens. What each
package was is kept in `var/lib/dpkg/status.d`, where scanners look in images without a package manager.

Runs as root in a build, with nothing but the standard library. Files get one time, so that two builds are equal.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
ENVIRONMENT = Path("/opt/localmodel")

PACKAGES = (
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

PROGRAMS = {f"/usr/bin/{PYTHON}", "/usr/bin/python3"}
SHELL_PROGRAMS = {"/usr/bin/bash", "/usr/bin/sleep"}

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
    "coordinator": {"localmodel", "localmodel-manager", "python", "python3", PYTHON},
    "ray-node": {"localmodel", "python", "python3", PYTHON, "ray"},
}
"""Of what packages put beside the interpreter: the commands that somebody runs."""

NOT_RUN = {
    "coordinator": ("coordinator/dev", "ray/jars", "ray/rllib", "ray/llm", "ray/dashboard/client", "ray/core/src"),
    "ray-node": ("coordinator/dev", "ray/jars", "ray/rllib", "ray/llm"),
}
"""Of the site-packages: the laptop cluster, Java, learning; and for a driver, the programs of Ray that it talks to."""

ACCOUNTS = """\
root:x:0:0:root:/root:/usr/sbin/nologin
localmodel:x:1000:1000:localmodel:/tmp:/usr/sbin/nologin
nonroot:x:65532:65532:nonroot:/tmp:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUPS = "root:x:0:\nlocalmodel:x:1000:\nnonroot:x:65532:\nnogroup:x:65534:\n"


def wanted(path: str, programs: set[str]) -> bool:
    """Whether a file of a Debian package goes into the image: of programs those named, of documents licences."""
    if path.startswith(("/usr/bin/", "/usr/sbin/", "/bin/", "/sbin/")):
        return path in programs
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


def install(package: str, root: Path, programs: set[str]) -> None:
    for name in files_of(package):
        path = Path(name)
        if wanted(name, programs) and not (path.is_dir() and not path.is_symlink()):
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


def environment(root: Path, image: str) -> None:
    """The virtual environment, less what does not run in a cluster."""
    target = root / str(ENVIRONMENT).lstrip("/")
    shutil.copytree(
        ENVIRONMENT, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "activate*", "Activate*")
    )
    site = target / "lib" / PYTHON / "site-packages"
    for name in NOT_RUN[image]:
        shutil.rmtree(site / name, ignore_errors=True)
    for command in (target / "bin").iterdir():
        if command.name not in COMMANDS[image]:
            command.unlink()
    if image == "coordinator":
        (root / "manager").symlink_to("opt/localmodel/bin/localmodel-manager")


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


def libraries(root: Path) -> None:
    """The loader's cache, and an error for a library that nothing in the image brings."""
    subprocess.run(["ldconfig", "-r", str(root)], check=True)
    (root / "var/cache/ldconfig/aux-cache").unlink(missing_ok=True)
    missing = sorted(set(_missing(root)))
    if missing:
        raise SystemExit("libraries that are not in the image:\n" + "\n".join(missing))


def _missing(root: Path) -> Iterator[str]:
    """Of Python's own extension modules, and of the programs: what the loader does not find in `root`."""
    loader = next(path for path in (root / "usr" / "lib64", root / "usr" / "lib") for path in path.glob("ld-linux*"))
    modules = (root / f"usr/lib/{PYTHON}/lib-dynload").glob("*.so")
    for file in [*modules, *(root / "usr/bin").iterdir()]:
        if file.is_symlink() or file.name.startswith(("readline.", "_curses", "_tkinter", "_dbm", "_gdbm")):
            continue
        inside = f"/{file.relative_to(root)}"
        command = ["chroot", str(root), f"/{loader.relative_to(root)}", "--list", inside]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        for line in (listed.stdout + listed.stderr).splitlines():
            if "not found" in line or "cannot open" in line:
                yield f"{inside}: {line.strip()}"


def settle_times(root: Path, epoch: int) -> None:
    for path in [root, *root.rglob("*")]:
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def build(image: str, root: Path) -> None:
    """Leaves the whole image in `root`, which must not exist."""
    shell: Sequence[str] = SHELL if image == "ray-node" else ()
    programs = PROGRAMS | (SHELL_PROGRAMS if shell else set())
    root.mkdir()
    merged_usr(root)
    for package in (*PACKAGES, *shell):
        install(package, root, programs)
    if shell:
        (root / "usr/bin/sh").unlink(missing_ok=True)
    copy(Path("/etc/ssl/certs/ca-certificates.crt"), root)
    accounts(root)
    environment(root, image)
    compile_all(root)
    libraries(root)
    settle_times(root, int(os.environ.get("SOURCE_DATE_EPOCH") or 0))


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
