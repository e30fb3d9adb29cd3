"""The cluster under test, through kubectl and helm: what it can do, what stands in it, and waiting for that.

`Failed` ends a step with what was seen; nothing else is raised for what a cluster does or does not.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Manifest = Mapping[str, Any]
COMMAND_S = 120.0


class Failed(Exception):
    """A step has not come out as it should. The message says what was expected and what was seen."""


class Cluster:
    """One that `kubeconfig` names. `say` gets a line for each thing that is waited for."""

    def __init__(
        self, kubeconfig: str | None, context: str | None, say: Callable[[str], None], *, wait_s: float
    ) -> None:
        self._select = [*(["--kubeconfig", kubeconfig] if kubeconfig else [])]
        self._context = context
        self._say = say
        self._wait_s = wait_s

    # --- commands ---

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = COMMAND_S) -> str:
        """What it prints. Raises Failed where it ends with another code than 0."""
        context = ["--context", self._context] if self._context else []
        return _run(["kubectl", *self._select, *context, *arguments], stdin, timeout_s)

    def helm(self, *arguments: str) -> str:
        context = ["--kube-context", self._context] if self._context else []
        return _run(["helm", *self._select, *context, *arguments], None, 300.0)

    def apply(self, *manifests: Manifest) -> None:
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", "-", stdin="\n".join(map(_document, manifests))
        )

    def delete(self, *arguments: str, wait: bool = True) -> None:
        """`wait` False: where no controller ends namespaces, which then stay Terminating."""
        self.kubectl("delete", "--ignore-not-found", f"--wait={str(wait).lower()}", *arguments, timeout_s=self._wait_s)

    # --- what there is ---

    def find(self, *arguments: str) -> Any:
        """The JSON of `kubectl get`; None where there is no such object, or no such kind."""
        try:
            return json.loads(self.kubectl("get", *arguments, "-o", "json"))
        except Failed as error:
            if "NotFound" in str(error) or "doesn't have a resource type" in str(error):
                return None
            raise

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        return list((self.find(*arguments) or {}).get("items", ()))

    def condition(self, kind: str, name: str, type_: str = "Ready", *more: str) -> dict[str, Any]:
        """The condition of an object; {} where it has none."""
        conditions = ((self.find(kind, name, *more) or {}).get("status") or {}).get("conditions") or ()
        return next((each for each in conditions if each["type"] == type_), {})

    @property
    def abilities(self) -> dict[str, bool]:
        """What a step may need, by its name, and whether it is here."""
        nodes = [each for each in self.items("nodes") if _is_ready(each)]
        return {
            "a kubelet (a Node that is Ready)": bool(nodes),
            "a second Node that is Ready": len(nodes) > 1,
            "KubeRay's kinds": self.find("crd", "rayclusters.ray.io") is not None,
        }

    @property
    def versions(self) -> dict[str, str]:
        """Of the API server, and of each Node: kubelet, container runtime, kernel, system."""
        found = json.loads(self.kubectl("version", "-o", "json"))
        versions = {name: str(found.get(name, {}).get("gitVersion")) for name in ("serverVersion", "clientVersion")}
        for node in self.items("nodes"):
            info = node["status"].get("nodeInfo") or {}
            names = ("kubeletVersion", "containerRuntimeVersion", "kernelVersion", "osImage", "architecture")
            versions[f"node {node['metadata']['name']}"] = ", ".join(str(info.get(name)) for name in names)
        return versions

    # --- waiting ---

    def until(self, what: str, seen: Callable[[], object], *, within_s: float | None = None) -> None:
        """`seen` is True. What it was last, where it is not in time, is in the message of Failed."""
        limit_s = within_s or self._wait_s
        self._say(f"waiting until {what}")
        deadline, last = time.monotonic() + limit_s, object()
        while last is not True:
            last = seen()
            if last is not True and time.monotonic() > deadline:
                raise Failed(f"not within {limit_s:g} s: {what}; last seen: {last}")
            time.sleep(0 if last is True else 1.0)


def _is_ready(node: Manifest) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _document(manifest: Manifest) -> str:
    return f"---\n{json.dumps(manifest)}"


def _run(command: Sequence[str], stdin: str | None, timeout_s: float) -> str:
    named = " ".join([command[0], *[each for each in command[1:] if not each.startswith("/")][:6]])
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError as error:
        raise Failed(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{named}: no end within {timeout_s:g} s") from error
    if done.returncode != 0:
        raise Failed(f"{named}: {done.stderr.strip()[-600:]}")
    return done.stdout
