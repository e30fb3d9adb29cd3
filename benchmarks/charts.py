"""Bars of what was measured: as text, as SVG, and as PNG where matplotlib is installed.

The SVG is written here, because bars need no library; so a page needs no script, and a plot no package.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from benchmarks.result import Result

_EIGHTHS = " ▏▎▍▌▋▊▉"
_ROW, _LEFT, _BAR, _WIDTH = 26, 220, 420, 760
OURS, OTHERS = "#1f7a5c", "#9aa5b1"


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
    """In the order in which they came."""
    found: dict[str, list[Result]] = {}
    for each in results:
        found.setdefault(each.group, []).append(each)
    return found


def ours(result: Result) -> bool:
    return result.who.startswith("localmodel")


def bar(value: float, most: float, width: int) -> str:
    """Block characters, an eighth of one at the end; at least an eighth for what is not nothing."""
    eighths = max(1 if value > 0 else 0, round(8 * width * value / most)) if most > 0 else 0
    whole, rest = divmod(min(eighths, 8 * width), 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def text(results: Sequence[Result], width: int = 40) -> str:
    """For a terminal: the time of each, shorter is better."""
    lines = []
    for group, members in groups(results).items():
        most = max(each.seconds for each in members)
        lines += ["", f"{group}: seconds, less is better"]
        lines += [f"  {each.who:26} {bar(each.seconds, most, width):{width}} {each.time}" for each in members]
    return "\n".join(lines)


def svg(results: Sequence[Result]) -> str:
    """One picture with a panel for each group."""
    parts, y = list[str](), 0
    for group, members in groups(results).items():
        most = max(each.seconds for each in members) or 1.0
        y += 28
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(group)}: seconds, less is better</text>')
        for each in members:
            y += _ROW
            length = max(1.0, _BAR * each.seconds / most)
            colour = OURS if ours(each) else OTHERS
            label = escape(f"{each.time}  {each.rate}")
            parts.append(f'<text x="{_LEFT - 8}" y="{y}" text-anchor="end">{escape(each.who)}</text>')
            parts.append(f'<rect x="{_LEFT}" y="{y - 13}" width="{length:.1f}" height="17" fill="{colour}"/>')
            inside = length > _BAR * 0.7
            at, anchor, ink = (_LEFT + length - 6, "end", "#fff") if inside else (_LEFT + length + 6, "start", "#222")
            parts.append(f'<text x="{at:.1f}" y="{y}" text-anchor="{anchor}" fill="{ink}">{label}</text>')
        y += 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 10}" viewBox="0 0 {_WIDTH} {y + 10}"'
    style = 'font-family="sans-serif" font-size="13" fill="#222"'
    return "\n".join([f"{head} {style}>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"])


def write(path: Path, results: Sequence[Result]) -> None:
    """`path` holds the plot: SVG, or PNG if its name ends so. Raises ImportError without matplotlib."""
    if path.suffix.lower() != ".png":
        path.write_text(svg(results))
        return
    import matplotlib  # type: ignore[import-not-found,unused-ignore]  # not a dependency

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = groups(results)
    figure, panels = pyplot.subplots(len(found), 1, squeeze=False, figsize=(8, 0.9 + 0.45 * len(results)))
    for panel, (group, members) in zip((row[0] for row in panels), found.items(), strict=True):
        names, seconds = [each.who for each in members], [each.seconds for each in members]
        drawn = panel.barh(names, seconds, color=[OURS if ours(each) else OTHERS for each in members])
        panel.bar_label(drawn, [f"{each.time}  {each.rate}" for each in members], padding=3, fontsize=8)
        panel.set(title=f"{group}: seconds, less is better")
        panel.invert_yaxis()
        panel.margins(x=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
