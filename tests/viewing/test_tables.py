"""Tables and sentences on 40 to 200 columns: nothing wider, nothing that needs colour, no reason cut short at 80."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.dev.trial.builders import GIB, a_cache, a_group, a_node, a_report, a_world
from coordinator.view.causes import Cause, causes
from coordinator.view.rows import rows
from coordinator.view.savings import savings
from coordinator.view.tables import bar, cause_lines, progress_line, savings_table, status_lines, status_table
from tests.kit.views import SLOW, a_mixed_world, drawn, view_of

AT_80 = """\
CACHE / NODE        PROGRESS   SIZE    RATE   ETA PEERS REASON
team-a/mistral  0/5 ·····    -    -       -     -     - SourceDenied
  ip-10-0-3-1 +3    ·····    -    -       -     -     - SourceDenied
  ip-10-0-3-5       ·····    -    -       -     -     - NodeNotReady
llama-70b  0/5      ██▏··  44% 15Gi 2.2Gi/s 1m17s   54% InsufficientStorage
  ip-10-0-3-1       ·····   0% 15Gi       -     -     - InsufficientStorage
  ip-10-0-3-2       ███··  60% 15Gi  80Mi/s 1m17s    0% slow, others 1Gi/s
  ip-10-0-3-3       ████·  80% 15Gi   1Gi/s    3s   75% Downloading
  ip-10-0-3-4       ████·  80% 15Gi   1Gi/s    3s   75% Downloading
  ip-10-0-3-5       ·····   0% 15Gi       -     -     - NodeNotReady
small  4/5          ████·  80%  1Gi       -     -   75% NodeNotReady
  ip-10-0-3-5       ·····   0%  1Gi       -     -     - NodeNotReady
  4 nodes Ready"""


def test_a_terminal_of_80_columns_shows_every_reason_whole() -> None:
    assert drawn(status_table(rows(view_of(a_mixed_world())), 80), 80) == AT_80.splitlines()


def test_the_page_of_commands_shows_what_is_drawn() -> None:
    view = view_of(a_mixed_world())
    found = rows(view)
    page = (Path(__file__).parents[2] / "docs/commands.md").read_text()

    for command, lines in {
        "status": [*drawn(status_table(found, 80), 80), "", *status_lines(found, (), 80)],
        "status --why llama-70b": cause_lines(causes(view, StatusKey("llama-70b")), 80),
        f"status --why llama-70b {SLOW}": cause_lines(causes(view, StatusKey("llama-70b"), NodeName(SLOW)), 80),
        "status --saved": drawn(savings_table(*savings(found)), 80),
    }.items():
        assert "\n".join([f"```text\n$ localmodel {command}", *lines, "```"]) in page


@pytest.mark.parametrize("columns", [40, 60, 80, 99, 100, 120, 200])
@pytest.mark.parametrize("wide", [False, True])
def test_nothing_is_wider_than_the_terminal(columns: int, wide: bool) -> None:
    found = rows(view_of(a_mixed_world()))
    each, whole = savings(found)

    for block in (status_table(found, columns, every_copy=wide, wide=wide), savings_table(each, whole)):
        assert max(map(len, drawn(block, columns))) <= columns
    for line in [*status_lines(found, ["you may not list nodes"], columns)]:
        assert len(line) <= columns or " " not in line.split("`")[0].strip()


def test_colour_says_nothing_that_the_text_does_not() -> None:
    table = status_table(rows(view_of(a_mixed_world())), 80)
    console = Console(width=80, force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as capture:
        console.print(table)

    assert "\x1b[31m" in capture.get()
    assert Console(width=80).render_str(capture.get()).plain  # it is still text
    assert "\x1b" not in "".join(drawn(table, 80))


def test_an_output_without_unicode_gets_ascii() -> None:
    lines = drawn(status_table(rows(view_of(a_mixed_world())), 80, ascii_only=True), 80)

    assert all(line.isascii() for line in lines)
    assert any("###..  60%" in line for line in lines)


@pytest.mark.parametrize(
    ("share", "drawing", "plain"),
    [
        (0.0, "·····   0%", ".....   0%"),
        (0.45, "██▎··  45%", "##...  45%"),
        (0.999, "████▉  99%", "####.  99%"),
        (1.0, "█████ 100%", "##### 100%"),
        (None, "·····    -", ".....    -"),
    ],
)
def test_a_bar_is_full_when_everything_is_there(share: float | None, drawing: str, plain: str) -> None:
    assert (bar(share, 5), bar(share, 5, ascii_only=True)) == (drawing, plain)


def test_many_nodes_become_few_lines_and_are_counted() -> None:
    cache = a_cache("llama")
    world = a_world(a_group(), cache).resolved(cache, GIB)
    for number in range(64):
        world.add(a_node(f"n{number:02}"))
        if number < 3:
            world.reporting(f"n{number:02}", a_report(cache))
    world.settle()

    lines = drawn(status_table(rows(view_of(world)), 80), 80)

    assert [line[:16].rstrip() for line in lines] == ["CACHE / NODE", "llama  3/64", "  n03 +60", "  3 nodes Ready"]


def test_what_stands_below_says_the_messages_the_sum_and_where_to_go_on() -> None:
    lines = status_lines(rows(view_of(a_mixed_world())), ["you may not list nodes: missing"], 200)

    assert lines[-3:] == [
        "0 of 3 caches Ready, 4 of 15 copies, 37Gi of 80Gi, 2.2Gi/s, origin 16Gi (1.00 times), peers 21Gi",
        "note: you may not list nodes: missing",
        "`localmodel status --why team-a/mistral` says why, and what to do",
    ]
    assert "hf://models/mistral answered 403: the token may not read it (SourceDenied)" in lines[0]
    assert status_lines([], [], 80) == ["no caches: `kubectl apply` a LocalModelCache"]


def test_a_line_of_progress_names_what_is_under_way() -> None:
    assert progress_line(rows(view_of(a_mixed_world()))) == (
        "team-a/mistral, 0/5 nodes, SourceDenied;"
        " llama-70b 44%, 0/5 nodes, 2.2Gi/s, 1m17s left, InsufficientStorage;"
        " small 80%, 4/5 nodes, NodeNotReady"
    )


def test_a_next_step_stands_below_what_explains_it_and_its_command_is_not_broken() -> None:
    found = [
        Cause(0, "llama is not Ready."),
        Cause(1, "n1 has no copy.", "X", "Look there; `localmodel retry llama a-node-with-a-long-name` tries again"),
        Cause(2, "It is full."),
        Cause(1, "n2 is slow."),
    ]

    assert cause_lines(found, 60) == [
        "llama is not Ready.",
        "  n1 has no copy.",
        "    It is full.",
        "    next: look there;",
        "      `localmodel retry llama a-node-with-a-long-name` tries",
        "      again",
        "  n2 is slow.",
    ]


def test_savings_have_a_sum() -> None:
    lines = drawn(savings_table(*savings(rows(view_of(a_mixed_world())))), 80)

    assert lines == [
        "CACHE      COPIES  SIZE  ORIGIN  TIMES  PEERS  ZONES  SINCE",
        "llama-70b       0  15Gi    15Gi   1.00   18Gi      0  -",
        "small           4   1Gi     1Gi   1.00    3Gi  512Mi  2023-11-14 22:12Z",
        "in all          4  16Gi    16Gi   1.00   21Gi  512Mi  2023-11-14 22:12Z",
        "21Gi that nodes alone would have read from the origin came from other nodes,",
        "512Mi of it across zones",
    ]
