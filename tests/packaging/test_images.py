"""The images, built and run: who they run as, what is not in them, how they start and end.

Skipped, with the reason, where containers cannot be built and run.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from coordinator.dev.trial.waiting import eventually
from tests.kit.containers import (
    BUILD_S,
    COORDINATOR,
    COORDINATOR_DEV,
    RAY_NODE,
    RAY_NODE_DEV,
    about,
    podman,
    python,
    running,
)

BOTH = [COORDINATOR, RAY_NODE]
DEV = [COORDINATOR_DEV, RAY_NODE_DEV]
SLOWLY = "DEV_IMAGES=1 builds and runs them, too: gigabytes and minutes"

pytestmark = [pytest.mark.images, pytest.mark.timeout(BUILD_S + 300), pytest.mark.usefixtures("images")]
with_dev_images = pytest.mark.skipif("DEV_IMAGES" not in os.environ, reason=SLOWLY)


@pytest.fixture(scope="module", params=BOTH, ids=["coordinator", "ray-node"])
def root(request: pytest.FixtureRequest, images: None) -> Iterator[tuple[str, Path]]:
    """An image's name and its files, mounted."""
    mounted = podman("image", "mount", request.param)
    assert mounted.returncode == 0, mounted.stderr
    yield request.param, Path(mounted.stdout.strip())
    podman("image", "unmount", request.param)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode()
    except OSError:
        return 0, ""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# What is in them.


def test_an_image_says_what_it_is_and_runs_as_nobody_in_particular() -> None:
    for image, title in {COORDINATOR: "localmodel", RAY_NODE: "localmodel-ray"}.items():
        said = about(image)
        labels = {key.removeprefix("org.opencontainers.image."): value for key, value in said["Labels"].items()}
        assert labels["title"] == title
        assert labels["licenses"] == "Apache-2.0"
        assert {"description", "source", "documentation", "version", "revision", "created"} <= labels.keys()
        assert said["Config"]["User"] == "65532:65532"
        assert said["Config"]["StopSignal"] in ("SIGTERM", "15")
    config = about(COORDINATOR)["Config"]
    assert config["Entrypoint"] == ["/manager"], "KServe's"
    assert {"8080/tcp", "8081/tcp", "9443/tcp"} <= config["ExposedPorts"].keys()
    assert all(int(port.partition("/")[0]) > 1024 for port in config["ExposedPorts"])


def test_both_share_a_layer_that_is_most_of_either() -> None:
    ours, rays = about(COORDINATOR), about(RAY_NODE)
    assert ours["RootFS"]["Layers"][0] == rays["RootFS"]["Layers"][0]
    assert rays["Size"] - ours["Size"] < ours["Size"] / 3


def test_there_is_no_shell_no_package_manager_and_nothing_that_nobody_runs(root: tuple[str, Path]) -> None:
    image, files = root
    programs = {path.name for folder in ("usr/bin", "usr/sbin") for path in (files / folder).glob("*")}
    shell = {"bash", "sleep"} if image == RAY_NODE else set()
    assert programs - {"python3"} == {next(name for name in programs if name.startswith("python3."))} | shell
    commands = {path.name for path in (files / "opt/localmodel/bin").iterdir() if not path.name.startswith("python")}
    assert commands == ({"localmodel", "ray"} if image == RAY_NODE else {"localmodel", "localmodel-manager"})
    (site,) = files.glob("opt/localmodel/lib/python3*/site-packages")
    for name in ("pip", "setuptools", "coordinator/dev", "pytest", "py_spy"):
        assert not (site / name).exists(), name
    assert not list(files.glob("usr/lib/python3*/ensurepip"))
    assert not (files / "var/lib/dpkg/status").exists()


def test_nothing_is_privileged_or_open_to_be_changed(root: tuple[str, Path]) -> None:
    _, files = root
    for path in files.rglob("*"):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            continue
        assert not about.st_mode & (stat.S_ISUID | stat.S_ISGID), path
        assert not about.st_mode & stat.S_IWOTH or path == files / "tmp", path
        assert (about.st_uid, about.st_gid) == (0, 0), path


def test_nothing_of_the_machine_that_built_it_is_left(root: tuple[str, Path]) -> None:
    _, files = root
    for name in ("etc/pip.conf", "run/build", "src", "opt/pip", "root/.cache", "etc/resolv.conf", "etc/hostname"):
        assert not (files / name).exists(), name
    debian = (files / "etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE")
    assert debian > 100, "origins on the internet are verified by these"


def test_every_module_is_compiled_because_the_root_is_read_only(root: tuple[str, Path]) -> None:
    _, files = root
    (site,) = files.glob("opt/localmodel/lib/python3*/site-packages")
    for package in ("coordinator", "actors"):
        sources = list((site / package).rglob("*.py"))
        assert sources
        for source in sources:
            assert list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")), source


def test_the_bill_of_materials_lists_what_is_installed(root: tuple[str, Path]) -> None:
    image, files = root
    name = image.removeprefix("localhost/").partition(":")[0]
    cyclonedx = json.loads((files / f"usr/share/sbom/{name}.cdx.json").read_text())
    spdx = json.loads((files / f"usr/share/sbom/{name}.spdx.json").read_text())
    purls = {each["purl"] for each in cyclonedx["components"]}
    (site,) = files.glob("opt/localmodel/lib/python3*/site-packages")
    installed = {path.name.partition("-")[0].lower().replace("_", "-") for path in site.glob("*.dist-info")}
    listed = {purl.removeprefix("pkg:pypi/").partition("@")[0] for purl in purls if purl.startswith("pkg:pypi/")}
    assert {each.replace(".", "-") for each in listed} == {each.replace(".", "-") for each in installed}
    debian = {path.name for path in (files / "var/lib/dpkg/status.d").iterdir()}
    names = {unquote(purl.removeprefix("pkg:deb/debian/").partition("@")[0]) for purl in purls if "/debian/" in purl}
    assert names == debian
    references = {each["externalRefs"][0]["referenceLocator"] for each in spdx["packages"] if "externalRefs" in each}
    assert references == purls


# How they run.


@pytest.mark.parametrize("image", BOTH, ids=["coordinator", "ray-node"])
def test_the_root_cannot_be_written_and_tmp_can(image: str) -> None:
    code = """
import os, pathlib
pathlib.Path("/tmp/a").write_text("x")
for folder in ("/", "/etc", "/opt/localmodel", "/usr", "/models"):
    try:
        pathlib.Path(folder, "a").write_text("x")
    except OSError as error:
        print(folder, error.errno)
print(os.getuid(), os.getgid(), os.getgroups())
"""
    done = python(image, code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["/", "/etc", "/opt/localmodel", "/usr", "/models"]
    assert {line.split()[1] for line in lines[:-1]} == {"30"}, "read-only"
    assert lines[-1].startswith("65532 65532")


def test_a_shell_is_only_where_kuberay_starts_ray_with_one() -> None:
    for shell in ("/bin/sh", "/bin/bash"):
        assert (
            podman("run", "--rm", "--network=none", "--entrypoint", shell, COORDINATOR, "-c", "true").returncode == 127
        )
    bash = ("run", "--rm", "--network=none", "--entrypoint", "/bin/bash", RAY_NODE, "-c")
    assert podman(*bash, "ulimit -n && sleep 0.01").returncode == 0
    assert podman(*bash, "ls /").returncode == 127


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Of a cluster that is not there."""
    (port,) = free_ports(1)
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    users = [{"name": "u", "user": {}}]
    content = {"clusters": [cluster], "users": users, "contexts": [context], "current-context": "c"}
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", **content}))
    tmp_path.chmod(0o755)
    return file


def test_the_coordinator_starts_without_a_cluster_says_so_stays_up_and_ends_in_good_order(kubeconfig: Path) -> None:
    metrics, probes = free_ports(2)
    options = (f"--volume={kubeconfig}:/kubeconfig:ro", "--env=KUBECONFIG=/kubeconfig")
    flags = (f"-metrics-addr=:{metrics}", f"--health-probe-addr=:{probes}", "--leader-elect", "--zap-encoder=json")
    with running(COORDINATOR, *flags, options=options) as container:
        eventually(lambda: get(probes, "/healthz")[0] == 200, timeout_s=120)
        status, reasons = get(probes, "/readyz")
        assert status == 503
        assert "cannot reach the API server" in reasons or "not synced yet" in reasons
        assert get(metrics, "/metrics")[0] == 200
        eventually(lambda: any("cannot reach" in str(line.get("error")) for line in container.logs()), timeout_s=60)
        process = container.status()
        assert process["Uid"].split() == ["65532"] * 4
        assert {process[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert process["NoNewPrivs"] == "1"
        assert get(probes, "/healthz")[0] == 200
        assert container.stop() == 0
        assert container.logs()[-1]["msg"] == "stopping"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["run", "--help"], 0), (["--no-such-flag"], 2), ([], 1)],
    ids=["help as of KServe's", "help of a command", "an unknown flag", "no cluster is configured"],
)
def test_the_entry_point_ends_as_kserves_does(arguments: list[str], code: int) -> None:
    assert podman("run", "--rm", "--network=none", COORDINATOR, *arguments).returncode == code


def test_a_ray_node_waits_for_its_head_as_user_1000_and_ends_in_good_order() -> None:
    head, probes = free_ports(2)
    arguments = (f"--address=127.0.0.1:{head}", f"--health-probe-addr=:{probes}", "--", "--num-cpus=0")
    with running(RAY_NODE, *arguments, options=("--user=1000:1000",)) as container:
        eventually(lambda: get(probes, "/healthz")[0] == 200, timeout_s=60)
        assert get(probes, "/readyz")[0] == 503
        assert container.status()["Uid"].split() == ["1000"] * 4
        assert container.stop() == 0
        assert [line["msg"] for line in container.logs()] == ["waiting for the Ray head"]


# What people at work have.


@with_dev_images
@pytest.mark.usefixtures("dev_images")
@pytest.mark.parametrize("image", DEV, ids=["coordinator", "ray-node"])
def test_a_dev_image_is_root_on_a_whole_debian_with_a_shell_apt_compilers_and_debuggers(image: str) -> None:
    def bash(script: str) -> list[str]:
        done = podman("run", "--rm", "--network=none", "--entrypoint=bash", image, "-ec", script)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert bash("id -u") == ["0"]
    bash("which apt-get gcc make gdb strace git curl ip lsof ps pip py-spy localmodel ray")
    bash("echo 'int main(void) { return 0; }' > /tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a")
    bash("python3 -c 'import debugpy, ray'")
    config = about(image)["Config"]
    assert config["Entrypoint"] == about(image.replace("-dev:", ":"))["Config"]["Entrypoint"]
    assert config["ExposedPorts"] == about(image.replace("-dev:", ":"))["Config"]["ExposedPorts"]
    assert podman("run", "--rm", "--network=none", image, "--help").returncode == 0


@with_dev_images
@pytest.mark.usefixtures("dev_images")
def test_a_dev_image_beside_the_coordinator_sees_where_it_is_and_its_files(kubeconfig: Path) -> None:
    metrics, probes = free_ports(2)
    options = (f"--volume={kubeconfig}:/kubeconfig:ro", "--env=KUBECONFIG=/kubeconfig")
    flags = (f"--metrics-addr=:{metrics}", f"--health-probe-addr=:{probes}")
    with running(COORDINATOR, *flags, options=options) as container:
        eventually(lambda: get(probes, "/healthz")[0] == 200, timeout_s=120)
        beside = ("run", "--rm", f"--pid=container:{container.name}", "--cap-add=SYS_PTRACE", "--entrypoint")
        dumped = podman(*beside, "py-spy", COORDINATOR_DEV, "dump", "--pid", "1")
        assert dumped.returncode == 0, dumped.stderr
        assert "MainThread" in dumped.stdout
        assert "coordinator/" in dumped.stdout
        listed = podman(*beside, "ls", COORDINATOR_DEV, "/proc/1/root/")
        assert "manager" in listed.stdout.split(), listed.stderr
