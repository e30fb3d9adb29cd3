"""Container images, built and run with podman as the manifests run them.

A machine on which that does not work at all is no fault of the images: `missing` and `probe` say why, for a skip.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kit.manifests import K8S

TAG = "test"
COORDINATOR, RAY_NODE = f"localhost/localmodel:{TAG}", f"localhost/localmodel-ray:{TAG}"
COORDINATOR_DEV, RAY_NODE_DEV = f"localhost/localmodel-dev:{TAG}", f"localhost/localmodel-ray-dev:{TAG}"
GRACE_S = 30
"""terminationGracePeriodSeconds of the coordinator."""

CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=16384:16384"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""Without the limits podman wants CAP_SYS_RESOURCE; without the rest, systemd."""

CONFINED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges")
STORE = Path("/var/lib/containers")
ROOM_BYTES = 8 << 30
"""What both images and the layers that they are made from take, with room to move."""

PODMANS_OWN = 125
"""The exit code of `podman run` for an error of its own; 126 and 127 are about the program in the image."""

BUILD_S = 1500
_SURROUNDINGS = re.compile(
    r"failed to fetch|temporary failure|could not resolve|no route to host|network is unreachable|timed out"
    r"|connection (refused|reset|aborted|broken)|max retries exceeded|hash sum mismatch|is not valid yet"
    r"|50[0234] +(server error|bad gateway|service unavailable|gateway timeout)"
    r"|no space left|cannot allocate memory|cannot be pulled, and",
    re.IGNORECASE,
)


def missing() -> str | None:
    """Why nothing can be built and run here, as far as that can be seen without trying."""
    if os.geteuid() != 0:
        return "containers are run as root here"
    tools = [tool for tool in ("buildah", "podman", "runc") if shutil.which(tool) is None]
    if tools:
        return f"not installed: {', '.join(tools)} (Debian: apt-get install {' '.join(tools)})"
    free = shutil.disk_usage(STORE if STORE.is_dir() else STORE.parent).free
    return f"{STORE} has {free >> 30}Gi free, and images need {ROOM_BYTES >> 30}Gi" if free < ROOM_BYTES else None


def podman(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Skips where podman itself cannot run a container; one whose image is wrong ends with another code."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)
    if arguments[0] == "run" and done.returncode == PODMANS_OWN:
        pytest.skip(f"podman cannot run this here: {done.stderr.strip()[-300:]}")
    return done


def probe(folder: Path) -> str | None:
    """Why an image of nothing but `true` cannot be built or run; None if it can. Uses the empty `folder`."""
    files, image = folder / "root", f"localhost/localmodel-probe:{uuid.uuid4().hex[:8]}"
    true = shutil.which("true") or "/bin/true"
    libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", true], capture_output=True, text=True).stdout)
    for path in (true, *libraries):
        target = files / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (folder / "Containerfile").write_text(f'FROM scratch\nCOPY root /\nRUN ["{true}"]\n')
    build = ["buildah", "bud", "--quiet", "--isolation=chroot", "--network=host", "--tag", image, str(folder)]
    run = ["podman", "run", "--rm", *CONFINED, "--tmpfs=/tmp:mode=1777", "--user=65532:65532", image, true]
    try:
        for command in (build, [*run[:3], "--network=host", *run[3:]], [*run[:3], "--network=none", *run[3:]]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                return f"containers do not work here: {' '.join(command[:2])}: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired as slow:
        return f"containers do not work here: {slow.cmd[0]} took more than {slow.timeout:g} s"
    finally:
        podman("rmi", "--force", image)
    return None


def build(*targets: str) -> str | None:
    """The images of `targets` are in the store under `TAG`, or what of the surroundings kept them from being built.

    With one time for all commits, so that what did not change since another is not built anew. `.ci/run` does the same.
    Raises AssertionError for any other failure.
    """
    command = [str(K8S / "images" / "build"), *targets]
    environment = {**os.environ, "TAG": TAG, "SOURCE_DATE_EPOCH": "0", "BUILDER": "buildah"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        try:
            _, said = run.communicate(timeout=BUILD_S)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            return f"the images were not built within {BUILD_S} s"
    reason = surroundings(said) if run.returncode else None
    assert run.returncode == 0 or reason, said[-3000:]
    return reason


def surroundings(said: str) -> str | None:
    """The line of a failed build's output that tells of a mirror, an index or a disk; None if there is none."""
    return next((line.strip()[:300] for line in said.splitlines() if _SURROUNDINGS.search(line)), None)


@dataclass(frozen=True, slots=True)
class Container:
    name: str

    def state(self) -> Any:
        return json.loads(podman("inspect", self.name).stdout)[0]["State"]

    def status(self) -> Mapping[str, str]:
        lines = Path(f"/proc/{self.state()['Pid']}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}

    def logs(self) -> list[dict[str, Any]]:
        done = podman("logs", self.name)
        return [json.loads(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("{")]

    def stop(self) -> int:
        """Its exit code after SIGTERM; fails where it has to be killed."""
        done = podman("stop", "--time", str(GRACE_S), self.name)
        assert done.returncode == 0, done.stderr
        return int(self.state()["ExitCode"])


@contextmanager
def running(image: str, *arguments: str, options: Sequence[str] = ()) -> Iterator[Container]:
    """A container as the manifests have it: read-only, no capabilities, no new privileges, only /tmp to write to."""
    name = f"localmodel-test-{uuid.uuid4().hex[:8]}"
    tmp = () if any(option.endswith(":/tmp") for option in options) else ("--tmpfs=/tmp:mode=1777",)
    network = () if any(option.startswith("--network") for option in options) else ("--network=host",)
    flags = (*CONFINED, *tmp, *network, *options)
    started = podman("run", "--detach", "--name", name, *flags, image, *arguments)
    try:
        assert started.returncode == 0, started.stderr
        yield Container(name)
    finally:
        podman("rm", "--force", "--time", "0", name)


def python(image: str, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One piece of Python in a container of `image`, confined as above."""
    flags = (*CONFINED, "--tmpfs=/tmp:mode=1777", "--network=none", *options)
    return podman("run", "--rm", *flags, "--entrypoint", "python3", image, "-c", code)


def about(image: str) -> Any:
    """What `podman image inspect` says of it."""
    return json.loads(podman("image", "inspect", image).stdout)[0]
