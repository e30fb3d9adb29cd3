"""Modules that had another name until packages were made of them: imports by the old name work for one more release.

Agents are detached actors, which Ray finds by the path of their module: one that the release before has started looks
for `coordinator.rayfleet` when it starts again. Scripts outside of the repository name modules, too. Each import says
where the module is now (DeprecationWarning). Nothing of ours may use an old name; the tests fail where it does.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

_MOVED = {
    ("actors", "actors.agent"): "task diff settings room:capacity evicted:evictions report:reports",
    ("actors", "actors.fill"): (
        "files concurrency alone:solo together:cooperative fetch:origin_reader transfer:range_reader "
        "traffic:meter quota:origin_quota archive:unpack members:archive_members decompressed:decompress"
    ),
    ("actors", "actors.peers"): "exchange swarm tls wire gossip asking:client",
    (
        "actors",
        "actors.mesh",
    ): "membership bitmap pauses moves:actions standing:peer serving:uploads news:announcements pace:limits",
    ("actors", "actors.sources"): (
        "source:resolve hub:huggingface hub_tree:huggingface_tree hub_client:huggingface_client "
        "oci registry_login challenges:registry_challenge docker_config web filesystems "
        "listings local_files parts bounds causes"
    ),
    ("actors", "actors.transport"): "connections servers stall guard no_proxy refusals reach:redirects",
    ("actors", "actors.disk"): "store ingest journal publish marker documents notes handles filesystem durable",
    ("actors", "actors.scrub"): "scrubber repair",
    ("coordinator", "coordinator.api"): "crds",
    (
        "coordinator",
        "coordinator.kube",
    ): "kubeconfig:config httpkube:http informer events leader quantity selectors:node_selector",
    ("coordinator", "coordinator.fleet"): "rayfleet:ray_fleet absence",
    ("coordinator", "coordinator.plan"): (
        "orphans access fold tally desired usage eviction removals status conditions patches pods "
        "written members:placement company:fill_groups governor:origin_shares budget:origin_budget "
        "copies:offline_sources transitions:announcements"
    ),
    ("coordinator", "coordinator.control"): (
        "controller resolver turns credentials provenance informers metrics remover looks claims quarantine "
        "pruning story pacing:write_pacing evictor:eviction_guard"
    ),
    ("coordinator", "coordinator.cli"): "process:run fill verify target output settings health",
    ("coordinator.dev", "coordinator.dev.origin"): "answers:requests hub:repository sample faults",
    (
        "coordinator.dev",
        "coordinator.dev.laptop",
    ): "cluster command processes raynodes envtest flags outcome runfolder screen",
}
"""Package before and now → modules, `old:new` where the name is another."""

_SPLIT = {
    "actors.buckets": ("actors.sources.object_stores", "actors.sources.object_digests"),
    "actors.entries": ("actors.sources.entries", "actors.sources.filesystems"),
    "coordinator.backoff": ("actors.retry",),
    "actors.moved": ("actors.transferred",),
    "actors.origin": ("actors.transport.answers", "actors.sources.options", "actors.sources.selection"),
    "coordinator.snapshot": ("coordinator.plan.snapshot", "coordinator.plan.reading"),
}
"""Modules that became several, or moved to the vocabulary."""

_RENAMED = {"actors.moved.Moved": "Transferred"}
"""What has another name within its module."""

NOW: Mapping[str, tuple[str, ...]] = {
    f"{before}.{item.partition(':')[0]}": (f"{now}.{item.partition(':')[2] or item}",)
    for (before, now), items in _MOVED.items()
    for item in items.split()
} | _SPLIT


class _Finder:
    """A finder and a loader by their methods: the base classes of `importlib.abc` take long to import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in NOW else None  # type: ignore[arg-type]  # it has a loader's methods

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Where there is one module now, the old name is that very module; else it has the names of all."""
        name, now = module.__name__, NOW[module.__name__]
        warnings.warn(f"{name} is {', '.join(now)} now", DeprecationWarning, stacklevel=2)
        renamed = {old: new for old, new in _RENAMED.items() if old.rpartition(".")[0] == name}
        if len(now) == 1 and not renamed:
            sys.modules[name] = import_module(now[0])
        else:
            for each in now:
                vars(module).update({key: value for key, value in vars(import_module(each)).items() if key[:2] != "__"})
        for old, new in renamed.items():
            setattr(module, old.rpartition(".")[2], vars(module)[new])


def install() -> None:
    """From now on the old names can be imported. Safe to call again."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.append(_Finder())
