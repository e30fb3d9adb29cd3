"""What the trials came to: a table for a terminal, and the same as Markdown for docs/faults.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.killmatrix.trial import MIB, Outcome

HEADINGS = ("party", "fault", "trials", "corrupt files", "read twice, MiB", "reason", "Ready after, s", "")


def rows(outcomes: Iterable[Outcome]) -> list[tuple[str, ...]]:
    """One row a fault: the worst of its trials."""
    by_fault: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        by_fault.setdefault((outcome.party, outcome.name), []).append(outcome)
    return [_row(party, name, trials) for (party, name), trials in by_fault.items()]


def _row(party: str, name: str, trials: Sequence[Outcome]) -> tuple[str, ...]:
    run = [trial for trial in trials if not trial.skipped]
    if not run:
        return (party, name, "0", "", "", "", "", f"not run: {trials[0].skipped}")
    twice = max(trial.twice_bytes for trial in run) / MIB
    bound = max(trial.twice_bound_bytes for trial in run) // MIB
    ready = [trial.ready_s for trial in run if trial.ready_s is not None]
    reasons = [f"{trial.reason} after {trial.reason_s:.0f} s" for trial in run if trial.reason_s is not None]
    bad = [trial for trial in run if not trial.good]
    verdict = "" if not bad else f"FAILED with seed {', '.join(str(trial.seed) for trial in bad)}"
    return (
        party,
        name,
        str(len(run)),
        str(sum(trial.corrupt for trial in run)),
        f"{twice:.1f} of {bound}",
        max(reasons, default=""),
        f"{max(ready):.0f}" if ready else "",
        verdict,
    )


def markdown(outcomes: Iterable[Outcome]) -> str:
    table = [HEADINGS, ("---",) * len(HEADINGS), *rows(outcomes)]
    return "\n".join("| " + " | ".join(row) + " |" for row in table) + "\n"


def summary(outcomes: Sequence[Outcome]) -> str:
    run = [outcome for outcome in outcomes if not outcome.skipped]
    corrupt = sum(outcome.corrupt for outcome in run)
    failed = sum(not outcome.good for outcome in run)
    faults = len({(outcome.party, outcome.name) for outcome in run})
    skipped = len(outcomes) - len(run)
    more = f", {skipped} not run" if skipped else ""
    return f"{faults} faults, {len(run)} trials: {corrupt} corrupt files, {failed} failed{more}"
