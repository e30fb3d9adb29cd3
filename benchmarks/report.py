"""Measurements for people: a table with a sentence below each row, and one page that needs nothing else."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks import charts, needs
from benchmarks.machine import machine
from benchmarks.result import COLUMNS, Result

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; width: 100% } th { text-align: left; border-bottom: 2px solid #222 }
td, th { padding: .25em .6em .25em 0; vertical-align: top } td.number { text-align: right; white-space: nowrap }
tr.means td { color: #555; border-bottom: 1px solid #ddd; padding-bottom: .6em } svg { max-width: 100%; height: auto }
pre { overflow-x: auto; background: #f4f5f6; padding: 1em; font-size: 12px } .ours { font-weight: bold }
"""


def table(results: Sequence[Result], width: int = 100) -> str:
    """Plain text: a row for each, and below it what it means."""
    shown = {name: title for name, title in COLUMNS.items() if any(getattr(each, name) for each in results)}
    widths = {name: max(len(title), *(len(getattr(each, name)) for each in results)) for name, title in shown.items()}

    def line(cells: dict[str, str]) -> str:
        left = ("who", "verifies")
        return "  ".join(f"{cells[name]:{'<' if name in left else '>'}{widths[name]}}" for name in shown).rstrip()

    lines = list[str]()
    for group, members in charts.groups(results).items():
        lines += ["", group, line(shown)]
        for each in members:
            lines.append(line({name: getattr(each, name) for name in shown}))
            lines += textwrap.wrap(each.means, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines).strip("\n")


def html(title: str, benchmark: str, results: Sequence[Result], notes: Sequence[str] = ()) -> str:
    """A self-contained page: plot, table, what each row means, the machine, the JSON lines."""
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(when)}; {escape(facts)}.</p>", charts.svg(results)]
    for group, members in charts.groups(results).items():
        body += [f"<h2>{escape(group)}</h2>", "<table>"]
        body.append("<tr>" + "".join(f"<th>{escape(head)}</th>" for head in COLUMNS.values()) + "</tr>")
        for each in members:
            cells = "".join(
                f'<td class="{"" if name in ("who", "verifies") else "number"}">{escape(getattr(each, name))}</td>'
                for name in COLUMNS
            )
            body.append(f'<tr class="{"ours" if charts.ours(each) else ""}">{cells}</tr>')
            body.append(f'<tr class="means"><td colspan="{len(COLUMNS)}">{escape(each.means)} ({each.how})</td></tr>')
        body.append("</table>")
    body += [f"<p>{escape(note)}</p>" for note in notes]
    lines = "\n".join(json.dumps(each.row(benchmark)) for each in results)
    body += ["<h2>JSON lines</h2>", f"<pre>{escape(lines)}</pre>"]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return "\n".join(["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>\n"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", type=Path, metavar="FILE", help="a page with the plot, the table and the JSON lines")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the plot: .svg, or .png (needs matplotlib)")


def check(args: argparse.Namespace, benchmark: str) -> None:
    """The files that were asked for can be written afterwards. Raises SystemExit(2), and says why on standard error."""
    for path in (args.html, args.plot):
        if path is not None and not path.resolve().parent.is_dir():
            print(f"{benchmark}: there is no folder {path.resolve().parent}", file=sys.stderr)
            raise SystemExit(2)
    if args.plot is not None and args.plot.suffix.lower() == ".png" and (missing := needs.lacks(("matplotlib",))):
        print(f"{benchmark}: --plot {args.plot}: {missing[0]}; a name that ends with .svg needs none", file=sys.stderr)
        raise SystemExit(2)


def busy() -> list[str]:
    """A note, where others used the processors meanwhile."""
    load, cpus = float(machine()["load"]), int(machine()["cpus"] or 1)
    if load <= cpus:
        return []
    return [f"This machine was busy (load {load:.1f} on {cpus} processors): measure again when nothing else runs."]


def tell(
    title: str, benchmark: str, results: Sequence[Result], args: argparse.Namespace, notes: Sequence[str] = ()
) -> None:
    """Prints table, plot, notes and JSON lines; writes the files that were asked for."""
    print(table(results))
    print(charts.text(results))
    notes = [*notes, *busy()]
    for note in ("", *notes):
        print(note)
    for each in results:
        print(json.dumps(each.row(benchmark), ensure_ascii=False))
    if args.plot is not None:
        charts.write(args.plot, results)
    if args.html is not None:
        args.html.write_text(html(title, benchmark, results, notes))
