"""The picture in the README: what a person types and sees, from a real run on a laptop cluster.

    .venv/bin/python docs/images/capture.py [docs/images/run.svg]

Three nodes, a sample of 512Mi, an origin that takes a second to answer, as one far away may. Every line of output is
that of the command, at a terminal of 88 columns; nothing is written by hand.
"""

from __future__ import annotations

import http.client
import json
import os
import pty
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from coordinator.dev.laptop.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.plan.snapshot import CACHES

COLUMNS = 88
SAMPLE_BYTES = 512 << 20
ENOUGH_BYTES = SAMPLE_BYTES
"""Of the three copies together: then the first picture is taken."""
PATIENCE_S = 180.0


def main(path: Path) -> int:
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"), force_terminal=True)  # noqa: SIM115  # until the process ends
    with (
        tempfile.TemporaryDirectory(prefix="localmodel-capture-") as folder,
        LaptopCluster(Path(folder), LaptopOptions(nodes=3, sample_bytes=SAMPLE_BYTES)) as cluster,
    ):
        slow_down(cluster)
        kube = cluster.kube()

        def until(enough: int) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                status = kube.get(CACHES, "llama").get("status", {})
                ready = any(
                    each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", ())
                )
                if ready or (status.get("bytes") or {}).get("cached", 0) >= enough:
                    return
                time.sleep(0.1)
            raise SystemExit(f"the sample was not there within {PATIENCE_S:g} s: {kube.get(CACHES, 'llama')}")

        manifest = Path(folder) / "llama.yaml"
        manifest.write_text(json.dumps(_cache()))
        shown = (
            ("kubectl", "apply", "-f", "llama.yaml"),
            ("localmodel", "status"),
            ("localmodel", "status", "--saved"),
        )
        for command, enough in zip(shown, (0, ENOUGH_BYTES, sys.maxsize), strict=True):
            if enough:
                until(enough)
            console.print(Text(f"$ {' '.join(command)}", style="bold green"))
            console.print(Text.from_ansi(said(command, Path(folder), cluster.kubeconfig)))
    path.write_text(console.export_svg(title="localmodel"))
    print(f"{path}: {path.stat().st_size >> 10}Ki")
    return 0


def slow_down(cluster: LaptopCluster) -> None:
    """The origin takes a second before each answer with bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.ports["origin"], timeout=10)
    connection.request("PUT", "/_faults", json.dumps([{"path": "/_cdn/*", "latency_s": 1.0}]))
    if (answer := connection.getresponse()).status >= 300:
        raise SystemExit(f"the origin takes no faults: {answer.read()!r}")
    connection.close()


def said(command: tuple[str, ...], folder: Path, kubeconfig: Path) -> str:
    """The output of a command at a terminal. Raises SystemExit if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig), "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    output = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # nobody has the other side open
            break
        if not block:
            break
        output += block
    os.close(ours)
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {output.decode()}")
    return output.decode().replace("\r\n", "\n").strip("\n")


def _cache() -> dict[str, object]:
    spec = {"sourceModelUri": SAMPLE_URI, "modelSize": "512Mi", "nodeGroups": ["laptop"]}
    metadata = {"name": "llama"}
    return {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelCache", "metadata": metadata, "spec": spec}


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("run.svg")))
