"""Rows, causes and savings as text: tables within a number of columns, and sentences that are wrapped.

    NAME             PROGRESS      SIZE   RATE    ETA    PEERS  REASON
    llama  3/4       ████▍  78%    15Gi   1.2Gi/s 2m10s    75%  InsufficientStorage
      n17            ░░░░░   0%       -         -     -      -  InsufficientStorage
      2 nodes Ready

Every cell is plain text that says all without its colour, so that a pipe, a log and NO_COLOR lose nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import wrap

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from actors.sizes import format_bytes
from coordinator.view.causes import Cause
from coordinator.view.rows import CacheRow, CopyRow, Rank, Totals, VersionRow, totals
from coordinator.view.savings import Saving

WIDE_COLUMNS = 100
"""From here on there is room for longer bars."""
SHOWN_COPIES = 10
"""So many copies of a cache are shown when all caches are asked about, the worst first."""
NAMED_TROUBLES = 5
"""So many different messages stand below a table."""
_STYLES = {
    Rank.FAILED: "red",
    Rank.STUCK: "red",
    Rank.SLOW: "yellow",
    Rank.MOVING: "cyan",
    Rank.WAITING: "default",
    Rank.DONE: "green",
}
_COMMAND = re.compile(r"`[^`]*`")
"""Is not broken at the end of a line, so that it can be copied."""
_PARTS = " ▏▎▍▌▋▊▉█"


def bar(share: float | None, width: int, *, ascii_only: bool = False) -> str:
    """`███▌····  45%`, `width` cells and the number; full at 100% alone, which is all of it."""
    if share is None:
        return f"{'·' if not ascii_only else '.':>{width}}".replace(" ", "." if ascii_only else "·") + "    -"
    percent = int(share * 100)
    if ascii_only:
        drawn = ("#" * int(share * width)).ljust(width, ".")
    else:
        eighths = int(share * width * 8)
        drawn = ("█" * (eighths // 8) + _PARTS[eighths % 8].strip()).ljust(width, "·")
    return f"{drawn} {percent:>3}%"


def status_table(
    rows: Sequence[CacheRow],
    columns: int,
    *,
    every_copy: bool = False,
    wide: bool = False,
    ascii_only: bool = False,
) -> RenderableType:
    """Caches, below each its copies: those that are not well, or `every_copy`."""
    width = 10 if columns >= WIDE_COLUMNS else 5
    gap = 2 if columns >= WIDE_COLUMNS else 1
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, gap, 0, 0))
    grid.add_column("CACHE / NODE", no_wrap=True, overflow="ellipsis", min_width=12)
    grid.add_column("PROGRESS", no_wrap=True)
    for heading in ("SIZE", "RATE", "ETA", "PEERS"):
        grid.add_column(heading, justify="right", no_wrap=True)
    if wide:
        for heading in ("ORIGIN", "ZONES", "TRY"):
            grid.add_column(heading, justify="right", no_wrap=True)
        grid.add_column("REVISION", no_wrap=True)
    grid.add_column("REASON", no_wrap=True, overflow="ellipsis", min_width=8)
    names = _short([copy.node for row in rows for copy in row.copies])
    for row in rows:
        grid.add_row(*_cache_cells(row, width, wide, ascii_only))
        groups = [[copy] for copy in row.copies] if every_copy else _alike(row.copies)
        for alike in groups[: None if every_copy else SHOWN_COPIES]:
            name = names[alike[0].node] + (f" +{len(alike) - 1}" if len(alike) > 1 else "")
            grid.add_row(*_copy_cells(alike[0], name, width, wide, ascii_only))
        if rest := 0 if every_copy else sum(map(len, groups[SHOWN_COPIES:])):
            grid.add_row(f"  and {_nodes(rest)} not Ready")
        done = sum(copy.rank is Rank.DONE for copy in row.copies)
        if done and row.rank is not Rank.DONE and not every_copy:
            grid.add_row(f"  {_nodes(done)} Ready")
    return grid


def _alike(copies: Sequence[CopyRow]) -> list[list[CopyRow]]:
    """Those that are not done; the ones that have nothing yet for the same reason are one group."""
    groups: list[list[CopyRow]] = []
    waiting: dict[tuple[str, str | None], list[CopyRow]] = {}
    for copy in copies:
        if copy.rank is Rank.DONE:
            continue
        kind = copy.phase, copy.reason
        if not copy.rate and not copy.share and kind in waiting:
            waiting[kind].append(copy)
            continue
        groups.append([copy])
        if not copy.rate and not copy.share:
            waiting[kind] = groups[-1]
    return groups


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def status_lines(rows: Sequence[CacheRow], notes: Iterable[str], columns: int) -> list[str]:
    """What stands below the table: messages of what is wrong, the sum, what could not be read, where to go on."""
    lines: list[str] = []
    said: set[tuple[str, str]] = set()
    for row in rows:
        if any(each.state in ("Next", "Failed") for each in row.versions):
            lines += _wrapped(f"{row.key}: {'; '.join(_version(each, row.nodes) for each in row.versions)}", columns)
        troubled = [copy for copy in row.copies if copy.rank <= Rank.STUCK and copy.message]
        if row.rank <= Rank.STUCK and row.message and not troubled:
            said.add((row.reason or "", row.message))
            lines += _wrapped(f"{row.key}: {row.message} ({row.reason})", columns)
        for copy in troubled:
            if (copy.reason or "", copy.message or "") not in said and len(said) < NAMED_TROUBLES:
                said.add((copy.reason or "", copy.message or ""))
                lines += _wrapped(f"{row.key} on {copy.node}: {copy.message} ({copy.reason})", columns)
    if lines:
        lines.append("")
    lines += _wrapped(_sum(totals(rows)), columns)
    lines += [line for note in notes for line in _wrapped(f"note: {note}", columns)]
    worst = next((row for row in rows if row.rank <= Rank.SLOW), None)
    if worst is not None:
        lines += _wrapped(f"`localmodel status --why {worst.key}` says why, and what to do", columns)
    return lines


def _version(version: VersionRow, nodes: int) -> str:
    ready = f", {version.beside} have it ready" if version.beside else ""
    return f"{version.state.lower()} {version.name} on {version.nodes}/{nodes}{ready}"


def _sum(whole: Totals) -> str:
    if not whole.caches:
        return "no caches: `kubectl apply` a LocalModelCache"
    parts = [
        f"{whole.ready} of {whole.caches} cache{'s' if whole.caches > 1 else ''} Ready",
        f"{whole.available} of {whole.copies} copies",
    ]
    if whole.wanted:
        parts.append(f"{format_bytes(whole.cached)} of {format_bytes(whole.wanted)}")
    if whole.rate:
        parts.append(f"{format_bytes(whole.rate)}/s")
    if whole.amplification is not None and whole.origin + whole.peers:
        parts.append(
            f"origin {format_bytes(whole.origin)} ({whole.amplification:.2f} times), peers {format_bytes(whole.peers)}"
        )
    return ", ".join(parts)


def progress_line(rows: Sequence[CacheRow]) -> str:
    """How far things are, for an output that cannot be drawn anew."""
    open_rows = [row for row in rows if row.rank is not Rank.DONE]
    said = []
    for row in open_rows[:NAMED_TROUBLES]:
        share = "" if row.share is None else f" {int(100 * row.share)}%"
        rate = f", {format_bytes(row.rate)}/s" if row.rate else ""
        left = f", {row.eta} left" if row.eta else ""
        said.append(f"{row.key}{share}, {row.available}/{row.nodes} nodes{rate}{left}, {row.reason or 'no status'}")
    if len(open_rows) > NAMED_TROUBLES:
        said.append(f"{len(open_rows) - NAMED_TROUBLES} more")
    return "; ".join(said) or _sum(totals(rows))


def cause_lines(causes: Sequence[Cause], columns: int) -> list[str]:
    """Each below what it explains; the next step of one below what explains it."""
    lines: list[str] = []
    steps: list[tuple[int, str]] = []

    def close(depth: int) -> None:
        while steps and steps[-1][0] >= depth:
            at, step = steps.pop()
            lines.extend(_wrapped(f"next: {step[:1].lower()}{step[1:]}", columns, "  " * (at + 1)))

    for each in causes:
        close(each.depth)
        lines += _wrapped(each.text, columns, "  " * each.depth)
        if each.next_step:
            steps.append((each.depth, each.next_step))
    close(0)
    return lines


def savings_table(each: Sequence[Saving], whole: Saving) -> RenderableType:
    """One row per cache, and their sum."""
    if not each:
        return Text("nothing was read yet by the copies that are there")
    grid = Table(box=None, pad_edge=False, header_style="bold")
    grid.add_column("CACHE", no_wrap=True, overflow="ellipsis", min_width=8)
    for heading in ("COPIES", "SIZE", "ORIGIN", "TIMES", "PEERS", "ZONES"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("SINCE", no_wrap=True)
    for one in [*each, whole] if len(each) > 1 else each:
        times = one.amplification
        grid.add_row(
            one.key or "in all",
            str(one.copies),
            format_bytes(one.size) if one.size else "-",
            format_bytes(one.origin),
            "-" if times is None else f"{times:.2f}",
            format_bytes(one.peers),
            format_bytes(one.other_zones),
            _minute(one.since),
        )
    alone = f"{format_bytes(whole.saved)} that nodes alone would have read from the origin came from other nodes"
    crossed = f", {format_bytes(whole.other_zones)} of it across zones" if whole.other_zones else ""
    return Group(grid, Text(f"{alone}{crossed}"))


def _minute(since: str | None) -> str:
    return "-" if since is None else since[:16].replace("T", " ") + "Z"


def _cache_cells(row: CacheRow, width: int, wide: bool, ascii_only: bool) -> list[str | Text]:
    style = _STYLES[row.rank]
    more = [_amount(row.origin), _amount(row.other_zones), "", (row.revision or "")[:12]] if wide else []
    reason = "Ready" if row.rank is Rank.DONE else row.reason or "no status"
    return [
        Text.assemble((row.key, "bold"), f"  {row.available}/{row.nodes}"),
        Text(bar(row.share, width, ascii_only=ascii_only), style),
        format_bytes(row.size) if row.size is not None else "-",
        f"{format_bytes(row.rate)}/s" if row.rate else "-",
        row.eta or "-",
        _percent(row.from_peers),
        *more,
        Text(reason, style),
    ]


def _copy_cells(copy: CopyRow, name: str, width: int, wide: bool, ascii_only: bool) -> list[str | Text]:
    style = _STYLES[copy.rank]
    tries = str(copy.attempt) if copy.attempt else "-"
    more = [_amount(copy.origin), _amount(copy.other_zones), tries, (copy.revision or "")[:12]] if wide else []
    slow = f"slow, others {format_bytes(copy.slow_beside)}/s" if copy.slow_beside is not None else None
    return [
        f"  {name}",
        Text(bar(copy.share, width, ascii_only=ascii_only), style),
        format_bytes(copy.total) if copy.total is not None else "-",
        f"{format_bytes(copy.rate)}/s" if copy.rate else "-",
        copy.eta or "-",
        _percent(copy.from_peers),
        *more,
        Text(copy.reason or slow or copy.phase, style),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{int(100 * share)}%"


def _amount(count: int) -> str:
    return format_bytes(count) if count else "-"


def _short(names: Sequence[str]) -> dict[str, str]:
    """Without the domain that all nodes have: `ip-10-0-3-7` of `ip-10-0-3-7.eu-west-1.compute.internal`."""
    domains = {name.partition(".")[2] for name in names}
    return {name: name.partition(".")[0] if len(domains) == 1 else name for name in names}


def _wrapped(text: str, columns: int, indent: str = "") -> list[str]:
    whole = _COMMAND.sub(lambda found: found[0].replace(" ", "\0"), text)
    lines = wrap(
        whole,
        max(40, columns),
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]
