"""The kill matrix: faults × real processes, with seeds. Prints a row for each trial, then the table.

python -m tests.killmatrix                        every fault once; about twenty minutes on two cores
python -m tests.killmatrix --seeds 5              five times, each at another moment
python -m tests.killmatrix --short                what CI runs
python -m tests.killmatrix --only '*power*' --first-seed 7

The exit code is 1 if a file was corrupt, more was read twice than its bound, or a fill did not end as it must.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tests.killmatrix import agents, cluster, disks, nodes, origins, peers, table
from tests.killmatrix.trial import Outcome

OF_NODES = [*agents.FAULTS, *peers.FAULTS, *disks.FAULTS, *origins.FAULTS]


def trials(seeds: Sequence[int], only: str, short: bool, work: Path) -> Iterator[Outcome]:
    """Every chosen fault with every seed, one after the other."""
    chosen = [fault for fault in OF_NODES if fnmatchcase(fault.name, only) and (fault.short or not short)]
    for fault in chosen:
        for seed in seeds:
            folder = Path(tempfile.mkdtemp(prefix="nodes-", dir=work))
            yield nodes.run(fault, seed, folder)
            shutil.rmtree(folder, ignore_errors=True)
    of_cluster = [fault for fault in cluster.FAULTS if fnmatchcase(fault.name, only) and (fault.short or not short)]
    if of_cluster:
        with cluster.Cluster(work / "cluster") as running:
            for each in of_cluster:
                for seed in seeds:
                    yield cluster.run(each, seed, running)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.killmatrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trials of each fault (default: 1)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="S", help="the first seed (default: 0)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="faults whose names match")
    parser.add_argument("--short", action="store_true", help="the faults that CI runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one JSON line a trial")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table as Markdown")
    options = parser.parse_args(arguments)
    seeds = range(options.first_seed, options.first_seed + max(1, options.seeds))
    outcomes: list[Outcome] = []
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="killmatrix-") as folder:
        for outcome in trials(seeds, options.only, options.short, Path(folder)):
            outcomes.append(outcome)
            print(_line(outcome), flush=True)
    print()
    print(table.summary(outcomes))
    if options.json is not None:
        options.json.write_text("".join(json.dumps(outcome.to_json()) + "\n" for outcome in outcomes))
    if options.markdown is not None:
        options.markdown.write_text(table.markdown(outcomes))
    return 0 if outcomes and all(outcome.good for outcome in outcomes) else 1


def _line(outcome: Outcome) -> str:
    """One trial on one line; what went wrong on further ones."""
    if outcome.skipped:
        said = f"not run: {outcome.skipped}"
    else:
        ready = "" if outcome.ready_s is None else f"  Ready {outcome.ready_s:.1f} s"
        reason = "" if outcome.reason is None else f"  {outcome.reason} after {outcome.reason_s:.1f} s"
        twice = f"{outcome.twice_bytes / (1 << 20):.1f} of {outcome.twice_bound_bytes >> 20} MiB twice"
        said = f"at {outcome.struck_at:4.0%}  {outcome.corrupt} corrupt  {twice}{ready}{reason}"
    mark = "  " if outcome.good or outcome.skipped else "! "
    error = f"\n    {outcome.error}" if outcome.error else ""
    return f"{mark}{outcome.party:8}{outcome.name} #{outcome.seed}: {said}{error}"


if __name__ == "__main__":
    sys.exit(main())
