"""`localmodel dev`: the laptop cluster with a sample cache applied, shown live until Ready.

Standard output carries the table and what to do next; with `--json` its last line is one JSON object and the rest goes
to standard error. However it ends, but for SIGKILL, nothing is left running or on the disk; what SIGKILL leaves, the
next run removes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from rich.text import Text

from actors.sizes import format_bytes
from coordinator.api.resources import LocalModelCache, LocalModelNode
from coordinator.dev.laptop.cluster import LaptopCluster
from coordinator.dev.laptop.flags import Request, WrongFlags, add_arguments, request
from coordinator.dev.laptop.outcome import (
    Ending,
    Outcome,
    ending,
    has_failed,
    progress,
    ready_condition,
    saved,
    table,
    unfinished,
)
from coordinator.dev.laptop.processes import ChildFailed
from coordinator.dev.laptop.runfolder import remove_abandoned, run_folder
from coordinator.dev.laptop.screen import Screen
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import KubeError, Object
from coordinator.plan.snapshot import CACHES, LOCAL_NODES

__all__ = ["add_arguments", "cache_name", "cache_names", "has_failed", "ready_condition", "run", "table"]

PREFIX = "localmodel-"
INTERRUPTED, PIPE_CLOSED = 130, 141
HEADROOM_BYTES = 96 * 1024**2
"""Beside the models: what every agent leaves free, logs, and the API server's objects."""

_T = TypeVar("_T", LocalModelCache, LocalModelNode)
_OK, _BAD, _DIM = "green", "red", "dim"
_LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.2", "::1")


def run(args: argparse.Namespace) -> int:
    """The exit code: 0 Ready (or stopped by Ctrl-C afterwards), 1 failed, 130 interrupted before Ready."""
    try:
        wanted = request(args)
    except WrongFlags as error:
        args.complain(str(error))
        return 2
    return _Run(wanted).run()


class _Run:
    """One run: what was asked for, what interrupts it, and where it says so."""

    def __init__(self, wanted: Request) -> None:
        self.wanted = wanted
        self._interrupted = threading.Event()
        self._reader_left = False
        # With --json the last line of standard output is for a program; what a person reads may be thrown away.
        gone = (lambda: None) if wanted.as_json else self._left_alone
        self._screen = Screen(sys.stderr if wanted.as_json else sys.stdout, gone=gone)
        self._step, self._step_at = "", 0.0
        self._kubeconfig: str | None = None

    def run(self) -> int:
        self._obey_signals()
        bypass_proxies(os.environ)
        wanted, screen = self.wanted, self._screen
        if removed := remove_abandoned(wanted.parent, PREFIX):
            screen.line(
                f"removed what {removed} killed run{'s have' if removed > 1 else ' has'} left in {wanted.parent}", _DIM
            )
        outcome = Outcome(Ending("Interrupted", "it was interrupted before the caches were Ready"))
        try:
            with run_folder(wanted.parent, PREFIX) as directory:
                outcome = self._in(directory)
        except OSError as error:  # of the folder itself
            outcome = Outcome(_ending_of(error, wanted.parent))
            screen.line(f"the laptop cluster failed: {outcome.ending.message}", _BAD)
        except KeyboardInterrupt:
            pass
        if not wanted.once and (line := saved(outcome.caches, outcome.served)):
            screen.line(line)
        if self._reader_left:
            return PIPE_CLOSED
        if outcome.ending.reason == "Interrupted":
            return INTERRUPTED
        return 0 if outcome.ending.ready or (outcome.ending.reason == "Deleted" and not wanted.once) else 1

    def _in(self, directory: Path) -> Outcome:
        """The outcome, when nothing of it runs any more. Raises KeyboardInterrupt."""
        wanted = self.wanted
        cluster = LaptopCluster(directory, wanted.options, say=self._say, interrupted=self._poll)
        outcome = Outcome(Ending("Interrupted", "it was interrupted before the caches were Ready"))
        told = False
        try:
            try:
                self._check_room(directory)
                cluster.start()
                self._step = ""
                self._kubeconfig = str(cluster.kubeconfig)
                outcome = self._watch(cluster)
                self._explain(cluster, outcome)
                told = self._report(outcome)
                if not wanted.once:
                    self._stay(cluster)
                    self._screen.line("stopping", _DIM)
            except KeyboardInterrupt:
                self._screen.line("stopping", _DIM)
            except (ChildFailed, KubeError, OSError) as error:
                outcome = Outcome(_ending_of(error, directory), outcome.caches, outcome.nodes, None, outcome.served)
                self._screen.line(f"the laptop cluster failed: {outcome.ending.message}", _BAD)
        finally:
            cluster.stop()
        if not told:
            self._report(outcome)
        return outcome

    def _check_room(self, directory: Path) -> None:
        """Raises OSError if the copies of what is on this machine cannot fit."""
        size, options = self.wanted.model_bytes, self.wanted.options
        needed = size * options.nodes + options.sample_bytes + HEADROOM_BYTES
        free = shutil.disk_usage(directory).free
        if size and needed > free:
            raise _NoRoom(
                f"{options.nodes} nodes need {format_bytes(needed)} in {directory.parent}, where {format_bytes(free)} "
                "are free: take fewer --nodes, a smaller --size, or another disk with --dir"
            )

    def _watch(self, cluster: LaptopCluster) -> Outcome:
        """How the caches ended, from apply on. Raises KubeError, ChildFailed, KeyboardInterrupt."""
        kube, wanted = cluster.kube(), self.wanted
        names = cache_names(list(wanted.models))
        for name, uri in names.items():
            cluster.create_cache(name, uri)
        started = time.monotonic()
        while True:
            caches, nodes = _observe(kube, names)
            self._screen.show(table(caches, nodes, self._screen.columns))
            self._screen.progress(progress(caches))
            elapsed = time.monotonic() - started
            end = ending(names, caches, nodes)
            if end is None and wanted.once and elapsed > wanted.timeout_s:
                end = unfinished(caches, nodes, wanted.timeout_s)
            if end is not None:
                break
            if self._interrupted.wait(0.2):
                raise KeyboardInterrupt
            cluster.check()
        self._screen.keep(table(caches, nodes, self._screen.columns))
        served = (cluster.origin_stats() or {}).get("repos", {})
        return Outcome(end, tuple(caches), tuple(nodes), elapsed, served)

    def _explain(self, cluster: LaptopCluster, outcome: Outcome) -> None:
        screen = self._screen
        screen.line()
        for cache in outcome.caches:
            ready, reason, message = ready_condition(cache)
            verdict = f"Ready after {outcome.seconds or 0.0:.1f} s" if ready else reason or "not Ready"
            text = Text.assemble(
                (cache.metadata.name, "bold"),
                f" {cache.spec.source_model_uri}: ",
                (verdict, _OK if ready else _BAD),
                f". {message}",
            )
            screen.keep(text)
        if outcome.ending.reason in ("Timeout", "Deleted"):
            screen.line(outcome.ending.message, _BAD)
        if line := saved(outcome.caches, outcome.served):
            screen.line(line)
        if self.wanted.once:
            return
        name = outcome.caches[0].metadata.name if outcome.caches else "NAME"
        screen.line("\nThe cluster stays up until Ctrl-C. In another terminal:\n")
        for command in (
            f"export KUBECONFIG={shlex.quote(str(cluster.kubeconfig))}",
            "kubectl get localmodelcaches",
            f"kubectl describe lmc {name}",
            "kubectl get localmodelnodes -o wide",
            f"kubectl delete lmc {name}",
        ):
            screen.line(f"  {command}", "cyan")
        screen.line(f"\nLogs are in {cluster.logs}, models in {cluster.directory / 'nodes'}.")

    def _stay(self, cluster: LaptopCluster) -> None:
        """Returns when it is interrupted. Raises ChildFailed if a process of the cluster ends before."""
        while not self._interrupted.wait(0.5):
            cluster.check()

    def _report(self, outcome: Outcome) -> bool:
        """The JSON line, where it is wanted. True: it has been said."""
        if self.wanted.as_json:
            kubeconfig = self._kubeconfig if outcome.seconds is not None else None
            _print_json(outcome.summary(kubeconfig))
        return True

    # While it starts

    def _say(self, line: str) -> None:
        self._screen.line(line, _DIM)
        self._step, self._step_at = line, time.monotonic()

    def _poll(self) -> bool:
        """Whether it is interrupted. Also shows that it is alive: it is asked many times a second."""
        if self._step:
            self._screen.show(Text(f"… {time.monotonic() - self._step_at:.0f} s", _DIM))
        return self._interrupted.is_set()

    def _obey_signals(self) -> None:
        def stop(*_: object) -> None:
            self._interrupted.set()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                signal.signal(number, stop)

    def _left_alone(self) -> None:
        self._reader_left = True
        self._interrupted.set()


class _NoRoom(OSError):
    """Before anything is started."""


def _ending_of(error: Exception, directory: Path) -> Ending:
    """What a failure of the cluster comes to. A disk that is full is the reason, whatever it made fail."""
    if isinstance(error, _NoRoom):
        return Ending("InsufficientStorage", str(error))
    for folder in (directory, Path("/tmp")):  # noqa: S108  Ray's files are there
        try:
            free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        except OSError:
            continue
        if free < 1024**2:
            return Ending("InsufficientStorage", f"the disk of {folder} is full ({format_bytes(free)} free): {error}")
    return Ending("ClusterFailed", str(error))


def bypass_proxies(environ: MutableMapping[str, str]) -> None:
    """Nothing that stays on this machine goes through a proxy, whichever are set."""
    for name in ("NO_PROXY", "no_proxy"):
        given = [part.strip() for part in (environ.get(name) or environ.get(name.swapcase()) or "").split(",")]
        environ[name] = ",".join(dict.fromkeys([*filter(None, given), *_LOOPBACK]))


def _observe(kube: HttpKube, names: dict[str, str]) -> tuple[list[LocalModelCache], list[LocalModelNode]]:
    """Our caches and all nodes, as far as they can be read: what others apply is theirs."""
    caches = [each for each in kube.list(CACHES)[0] if each["metadata"]["name"] in names]
    read = [_read(LocalModelCache, each) for each in caches]
    nodes = [_read(LocalModelNode, each) for each in kube.list(LOCAL_NODES)[0]]
    return [each for each in read if each is not None], [each for each in nodes if each is not None]


def _read(kind: type[_T], value: Object) -> _T | None:
    try:
        return kind.model_validate(value)
    except ValidationError:
        return None


def cache_names(uris: Sequence[str]) -> dict[str, str]:
    """A name for each URI; those that would get the same are numbered."""
    names: dict[str, str] = {}
    for uri in uris:
        name = first = cache_name(uri)
        number = 2
        while name in names:
            name, number = f"{first}-{number}", number + 1
        names[name] = uri
    return names


def cache_name(uri: str) -> str:
    """A valid object name from the last part of a URI: `hf://Qwen/Qwen2.5-0.5B:main` → `qwen2.5-0.5b`."""
    last = re.split(r"[/]", uri.rstrip("/"))[-1].split(":")[0].split("@")[0].split("?")[0]
    return re.sub(r"[^a-z0-9.-]+", "-", last.lower()).strip("-.")[:63].rstrip("-.") or "model"


def _print_json(document: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError) as error:
        Screen(sys.stderr).line(f"the summary could not be written: {error}", _BAD)
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
