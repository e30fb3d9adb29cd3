"""The whole system on a cluster, from installation to uninstallation: whatever KUBECONFIG names.

    python -m k8s.e2e --image-prefix registry.example/ml/ --image-tag 0.1.0 [--only STEP...] [--json FILE] [--keep]

It installs into the namespace localmodel, uses localmodel-e2e for itself, drains a node, and removes all of it at the
end, so it wants a cluster that nobody needs meanwhile. The KubeRay operator has to run, nodes that hold models to carry
kserve/localmodel=worker, and kubectl and helm to be installed. What cannot run on a cluster, such as one without a
kubelet, is said by name. Ends with 1 where a step failed; with 2 where there is no cluster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from k8s.e2e import install, interruptions, models, nodes
from k8s.e2e.cluster import Cluster, Failed
from k8s.e2e.install import Images
from k8s.e2e.origin import NAMESPACE
from k8s.e2e.report import CANNOT, FAILED, PASSED, Outcome, document, exit_code, table

KUBELET, SECOND, KUBERAY = "a kubelet (a Node that is Ready)", "a second Node that is Ready", "KubeRay's kinds"


@dataclass(frozen=True, slots=True)
class Step:
    """`needs` are abilities of the cluster; `after` the steps that must have passed in the same run."""

    name: str
    run: Callable[[], str]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


def steps(cluster: Cluster, images: Images, *, runs: bool) -> list[Step]:
    """In order. `runs`: there is a kubelet, so that pods run."""
    served = ("kustomize", "group", "origin")
    interrupted = [
        Step(name, partial(interruptions.interrupted, cluster, images, interrupt), (KUBELET,), served)
        for name, interrupt in interruptions.NAMED.items()
    ]
    return [
        Step("chart", partial(install.by_chart, cluster, images, runs), (KUBERAY,)),
        Step("kustomize", partial(install.by_kustomize, cluster, images, runs), (KUBERAY,)),
        Step("group", partial(models.group, cluster, runs), (), ("kustomize",)),
        Step("origin", partial(models.serve, cluster, images), (KUBELET,)),
        Step("hub", partial(models.hub, cluster), (KUBELET,), served),
        Step("bucket", partial(models.bucket, cluster), (KUBELET,), served),
        Step("namespaced", partial(models.of_namespace, cluster), (KUBELET,), ("hub",)),
        Step("read by claim", partial(models.read_by_claim, cluster, images), (KUBELET,), ("hub",)),
        Step("read by path", partial(models.read_by_path, cluster, images), (KUBELET,), ("bucket",)),
        Step("delete", partial(models.delete, cluster, images), (KUBELET,), ("hub", "bucket")),
        Step("drain", partial(nodes.drain, cluster), (KUBELET, SECOND), ("hub",)),
        Step("upgrade", partial(nodes.upgrade, cluster), (KUBELET,), ("hub",)),
        *interrupted,
        Step("uninstall", partial(install.uninstall, cluster, runs), (KUBERAY,), ("kustomize",)),
    ]


def run(
    planned: Sequence[Step], abilities: Mapping[str, bool], say: Callable[[str], None], only: Sequence[str] = ()
) -> list[Outcome]:
    """Each step in turn. One that lacks an ability, or a step before it, is an outcome, too."""
    outcomes: dict[str, Outcome] = {}
    for step in planned:
        if only and step.name not in only:
            continue
        lacks = [need for need in step.needs if not abilities.get(need)]
        before = [name for name in step.after if name not in outcomes or outcomes[name].result != PASSED]
        if lacks or before:
            said = f"needs {', '.join(lacks)}" if lacks else f"needs that {', '.join(before)} passed in the same run"
            outcomes[step.name] = Outcome(step.name, CANNOT, 0.0, said)
            continue
        say(f"{step.name} …")
        began = time.monotonic()
        try:
            result, said = PASSED, step.run()
        except Failed as error:
            result, said = FAILED, str(error)
        outcomes[step.name] = Outcome(step.name, result, time.monotonic() - began, said)
        say(f"{step.name}: {result}")
    return list(outcomes.values())


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    cluster = Cluster(args.kubeconfig, args.context, say, wait_s=args.wait)
    try:
        versions, abilities = cluster.versions, cluster.abilities
    except Failed as error:
        say(f"e2e: {error}")
        return 2
    images = Images(args.image_prefix, args.image_tag)
    planned = steps(cluster, images, runs=abilities[KUBELET])
    unknown = set(args.only) - {step.name for step in planned}
    if unknown:
        say(f"e2e: no step is called {', '.join(sorted(unknown))}: {', '.join(step.name for step in planned)}")
        return 2
    outcomes: list[Outcome] = []
    try:
        outcomes = run(planned, abilities, say, args.only)
    finally:
        if not args.keep:
            _clean(cluster, abilities, say)
    for name, version in versions.items():
        print(f"{name}: {version}")
    print(table(outcomes))
    if args.json:
        args.json.write_text(document(outcomes, versions) + "\n")
    return exit_code(outcomes)


def _clean(cluster: Cluster, abilities: Mapping[str, bool], say: Callable[[str], None]) -> None:
    """Nothing of the installation is left, whichever step failed, but the kinds and what Nodes say."""
    base = [("-k", str(install.K8S / "base"))] if abilities[KUBERAY] else []
    for what in (("namespace", NAMESPACE), *base):
        try:
            cluster.delete(*what, wait=abilities[KUBELET])
        except Failed as error:
            say(f"e2e: left behind: {error}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m k8s.e2e",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--image-prefix", default="ghcr.io/localmodel/", metavar="PREFIX", help="what stands before the names"
    )
    parser.add_argument("--image-tag", default="0.1.0", metavar="TAG")
    parser.add_argument("--only", nargs="*", default=[], metavar="STEP", help="these steps, in the usual order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the report as JSON, too")
    parser.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="for each thing that is waited for"
    )
    parser.add_argument("--keep", action="store_true", help="what a failed step has made stays, to be looked at")
    parser.add_argument("--kubeconfig", metavar="FILE")
    parser.add_argument("--context", metavar="NAME")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
