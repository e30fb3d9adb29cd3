"""What docs/ says of the code is compared with the code, both ways."""

from __future__ import annotations

import argparse
import ast
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from fnmatch import filter as matching
from pathlib import Path
from typing import TypeGuard

import pytest
from jsonschema import Draft202012Validator

from actors import errors
from actors.agent.settings import AgentSettings
from actors.disk import bases, ingest
from actors.disk.marker import MARKER_BYTES
from actors.errors import LocalModelError
from actors.fill import files
from actors.fill import range_reader as transfer
from actors.manifest import OriginName
from actors.mesh import limits as pace
from actors.mesh import peer as standing
from actors.mesh.limits import Pace
from actors.mesh.membership import NEIGHBOURS
from actors.peers import gossip, wire
from actors.peers import server as peers
from actors.transferred import Transferred
from coordinator import cli
from coordinator.control import looks, resolver
from coordinator.control.metrics import MAX_REASONS, CacheSample, Metrics, NodeSample
from coordinator.plan import removals
from coordinator.plan.announcements import SIZE_TOLERANCE
from coordinator.plan.conditions import WAITING
from coordinator.plan.fold import FINAL
from coordinator.plan.origin_budget import Budget, OriginUse
from coordinator.view.next_steps import NEXT_STEPS
from tests.killmatrix import cluster
from tests.killmatrix.__main__ import OF_NODES
from tests.kit.code_reasons import reasons
from tests.kit.documents import schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every row of every table, headings left out."""
    lines = text.splitlines()
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not line.startswith("|-") and not below.startswith("|-"):
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# --- metrics ---


def exported() -> dict[str, tuple[str, frozenset[str]]]:
    """Type and labels of every metric, by the name that is scraped."""
    metrics = Metrics("1", leader_lock="lock")
    cache = CacheSample("llama", "team", {"NodeDownloaded": 3}, 10, 30, 5.0, Transferred(bytes_from_peers=20))
    metrics.show([cache], {"Ready": 1}, [OriginUse(OriginName("https://hub"), Budget(1, 1.0))], [NodeSample("n1")])
    metrics.first_byte("arrived", 1.0)
    metrics.filled("ready", 1.0)
    metrics.became_ready("ready", 1.0)
    metrics.kube_request("list", 200, 0.1)
    metrics.resolved("ok")
    metrics.failed("Orphaned")
    metrics.paused("https://hub")
    found = {}
    for family in metrics._registry.collect():
        samples = [sample for sample in family.samples if not sample.name.endswith(("_created", "_bucket", "_sum"))]
        assert samples, f"{family.name} has no sample here: give it one"
        name = samples[0].name.removesuffix("_count") if family.type == "histogram" else samples[0].name
        if not name.startswith("process_"):
            found[name] = family.type, frozenset(label for sample in samples for label in sample.labels)
    return found


def test_every_metric_is_described_with_its_type_and_its_labels_and_no_other_is() -> None:
    described = {
        cells[0].strip("`"): (cells[1], frozenset(re.findall(r"`(\w+)`", cells[2])))
        for cells in rows((DOCS / "metrics.md").read_text())
        if len(cells) == 4
    }

    assert described == exported()


# --- configuration ---

COMMANDS = tuple(cli._COMMANDS)
NO_VARIABLES = frozenset(
    {
        *("ARCHIVE_ACCESS", "DEEP_ARCHIVE", "DEEP_ARCHIVE_ACCESS", "FULL_OBJECT"),  # words of S3
        *("HDFS_NAMENODE", "KERBEROS_PRINCIPAL", "USER_PROXY"),  # keys of a Secret
        *("ACCOUNT_KEY", "CLIENT_ID", "CLIENT_SECRET", "CONNECTION_STRING", "SAS_TOKEN", "TENANT_ID"),  # ends of names
        *("QUANTITY_PATTERN", "QUANTITY_SCHEMA"),  # names in `__all__`
        "SC_CLK_TCK",  # of sysconf
        *("STORAGE_ALLOW_PATTERNS", "STORAGE_IGNORE_PATTERNS"),  # of the container in a ClusterStorageContainer
    }
)
"""What looks like the name of an environment variable in the code, and is none."""

_SINGLE = r"KUBECONFIG|HOME|TMPDIR|TEMP|TMP|TERM|COLUMNS"
_VARIABLE = re.compile(rf"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|{_SINGLE}|awsAnonymousCredential")


def sources() -> Iterator[Path]:
    for package in ("actors", "coordinator"):
        yield from (ROOT / package).rglob("*.py")


def section(text: str, heading: str) -> str:
    """What is below a heading of the second level, up to the next."""
    return text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    cli._COMMANDS[command][1](parser)
    return parser


def flags_of(command: str) -> dict[str, argparse.Action]:
    return {
        option: action
        for action in parser_of(command)._actions
        for option in action.option_strings
        if action.help is not argparse.SUPPRESS and option.startswith("--") and option != "--help"
    }


def described_flags(command: str) -> dict[str, list[str]]:
    """The cells after the first, by flag."""
    found = rows(section((DOCS / "configuration.md").read_text(), f"`localmodel {command}`"))
    return {match[1]: cells[1:] for cells in found if (match := re.match(r"`(--[a-z-]+)`", cells[0]))}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_described_with_its_default_and_no_other_is(command: str) -> None:
    flags, described = flags_of(command), described_flags(command)

    assert described.keys() == flags.keys()
    for name, action in flags.items():
        said = described[name][0].strip("`")
        if action.default is False or (action.nargs == "?" and action.default is None):
            assert said == "off", name
        elif isinstance(action.default, int | float):
            assert float(said) == action.default, name
        elif said:  # as it is said in --help, where another place is asked first
            assert said == action.default or re.search(rf"\b{re.escape(said)}\b", action.help or ""), name


def test_every_flag_of_the_coordinator_names_the_variable_that_its_help_names() -> None:
    described = described_flags("run")
    for name, action in flags_of("run").items():
        named = set(re.findall(r"\$(\w+)", action.help or ""))
        assert set(re.findall(r"`(\w+)`", described[name][1])) == named, name


@pytest.mark.slow
def test_every_environment_variable_that_is_read_is_described_and_no_other_is() -> None:
    text = (DOCS / "configuration.md").read_text()
    named = {
        node.value
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _VARIABLE.fullmatch(node.value)
    }
    code = "\n".join(path.read_text() for path in sources())
    described = set(re.findall(rf"`({_VARIABLE.pattern})`".replace("(_", "(?:_"), text))

    assert named - NO_VARIABLES - described == set()
    assert {name for name in described if not re.search(rf"\b{name}\b", code)} == set()


def test_the_defaults_of_an_agent_are_those_that_are_described() -> None:
    cells = [each for each in rows(section((DOCS / "configuration.md").read_text(), "A node agent")) if len(each) == 4]
    assert len(cells) > 15
    for variable, default, _, _ in cells:
        env = {variable.strip("`"): default.strip("`")}
        assert AgentSettings.from_env(env) == AgentSettings(), env


# --- reasons ---

_REASON_CELL = re.compile(r"`([A-Z][A-Za-z]+)`")
KUBERNETES = ROOT / "coordinator" / "dev" / "apiserver"
"""The development API server answers with Kubernetes' own reasons, which are not ours to describe."""


def described_reasons() -> dict[str, list[list[str]]]:
    """The other cells of each row about a reason."""
    found: dict[str, list[list[str]]] = {}
    for cells in rows((DOCS / "reasons.md").read_text()):
        for reason in _REASON_CELL.findall(cells[0]):
            found.setdefault(reason, []).append(cells[1:])
    return found


@pytest.mark.slow
def test_every_reason_that_the_code_gives_is_described_and_no_other_is() -> None:
    found = reasons((path for path in sources() if KUBERNETES not in path.parents), ROOT)
    described = described_reasons()

    assert {reason: places for reason, places in found.items() if reason not in described} == {}
    assert described.keys() - found.keys() == set()
    assert {reason for reason, cells in described.items() if len(cells) > 1} == set()


def test_what_only_an_edit_ends_is_described_so() -> None:
    described = {reason for reason, rows_of in described_reasons().items() if rows_of[0][1:2] == ["edit"]}

    assert described == errors._FINAL | FINAL


def is_error(each: object) -> TypeGuard[type[LocalModelError]]:
    return isinstance(each, type) and issubclass(each, LocalModelError)


def retryable() -> dict[str, set[bool]]:
    """By reason, whether trying again can help, of the classes that are raised with it, and of the failures made so."""
    classes = {name: each.retryable for name, each in vars(errors).items() if is_error(each)}
    found = {name: {helps} for name, helps in classes.items()}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            match node.func.id, node.args:
                case ("Meaning", [ast.Name(id=name), _, ast.Constant(value=str(reason))]):
                    found.setdefault(reason, set()).add(classes[name])
                case ("Failure", [ast.Constant(value=str(reason)), *_]):
                    said = {each.arg: ast.unparse(each.value) for each in node.keywords}
                    found.setdefault(reason, set()).add(said.get("retryable") != "False")
                case (name, _) if name in classes:
                    for each in node.keywords:
                        given = each.value.value if isinstance(each.value, ast.Constant) else None
                        if each.arg == "reason" and isinstance(given, str):
                            found.setdefault(given, set()).add(classes[name])
    return found


@pytest.mark.slow
def test_whether_a_reason_is_tried_again_is_described() -> None:
    found, tried = retryable(), 0
    for reason, rows_of in described_reasons().items():
        again = rows_of[0][1] if len(rows_of[0]) == 3 else ""
        if reason not in found or not again.startswith(("yes", "slowly", "edit")):
            continue
        tried += 1
        assert ("yes" in again) == (True in found[reason]), f"{reason}: {again}, but retryable is {found[reason]}"
    assert tried > 50


def test_the_next_step_of_a_reason_is_the_one_that_is_described() -> None:
    text = (DOCS / "reasons.md").read_text().split("\n## Sources\n")[1].split("\n## States of a cache\n")[0]
    described = {reason: cells[3] for cells in rows(text) for reason in _REASON_CELL.findall(cells[0]) if cells[3]}

    assert described == NEXT_STEPS


def test_what_is_a_mere_delay_is_described_so() -> None:
    assert {reason for reason, rows_of in described_reasons().items() if "Quiet." in rows_of[0][0]} == WAITING


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('raise StoreError("full", reason="DiskFull")', {"DiskFull"}),
        ("class DiskTired(StoreError): pass", {"DiskTired"}),
        ("class DiskTired(StoreError):\n def __init__(self): super().__init__('x', reason='Tired')", {"Tired"}),
        ('x = Failure("NoDisk" if a else "NoNet", "…")', {"NoDisk", "NoNet"}),
        ('def f():\n why = "NoDisk"\n return Failure(why, "…")', {"NoDisk"}),
        ('WHY = {1: "NoDisk", 2: "NoNet"}\nx = Failure(WHY[n], "…")', {"NoDisk", "NoNet"}),
        ('def why(): return "NoDisk"\nx = Note(1, reason=why())', {"NoDisk"}),
        ('reason, message = "NoDisk", "Words"', {"NoDisk"}),
        ('def say(text, reason): ...\nsay("Words", "NoDisk")', {"NoDisk"}),
        ('def say(text, reason="NoDisk"): ...', {"NoDisk"}),
        ('print({"ok": False, "reason": "NoDisk", "error": "Words"})', {"NoDisk"}),
        ('def why(): return "NoDisk", "Words"\nreason, message = why()\nx = Note(1, reason=reason)', {"NoDisk"}),
        ('def why(): return "NoDisk", "Words"\ndef say(x, reason, y): ...\nsay(1, *why())', {"NoDisk"}),
        ('raise ValueError("Words")\nx = y.reason == "NoDisk"', set()),
    ],
)
def test_a_reason_is_found_however_it_is_given(code: str, found: set[str], tmp_path: Path) -> None:
    known = "class LocalModelError(Exception): ...\nclass StoreError(LocalModelError): ...\n"
    (tmp_path / "errors.py").write_text(f"{known}class Failure:\n reason: str\n message: str\n")
    (tmp_path / "module.py").write_text(code)

    assert set(reasons(tmp_path.glob("*.py"), tmp_path)) == found | {"StoreError"}


# --- commands ---


def test_every_schema_is_one_and_is_named_with_its_command() -> None:
    named = set(re.findall(r"\]\(json/(\w+)\.schema\.json\)", (DOCS / "json.md").read_text()))

    assert named == {path.name.removesuffix(".schema.json") for path in (DOCS / "json").iterdir()}
    for name in named:
        Draft202012Validator.check_schema(schema(name))


def test_every_field_of_every_schema_is_described() -> None:
    for path in (DOCS / "json").iterdir():
        found = [each for each in _properties(json.loads(path.read_text())) if "description" not in each[1]]
        assert found == [], path.name


def _properties(part: object) -> Iterator[tuple[str, dict[str, object]]]:
    if isinstance(part, dict):
        properties = part.get("properties")
        yield from properties.items() if isinstance(properties, dict) else ()
        for each in part.values():
            yield from _properties(each)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_place_on_the_page_of_commands(command: str) -> None:
    text = (DOCS / "commands.md").read_text()
    table = text.split("| Command | Answers |")[1].split("\n\n")[0]

    assert f"`{command}`" in table
    assert all(
        len(line) <= 80
        for block in re.findall(r"```text\n(.*?)```", text, re.DOTALL)
        for line in block.split("\n")
        if not line.startswith("$")
    )


# --- links ---


def pages() -> list[Path]:
    return [
        path for path in ROOT.rglob("*.md") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def anchors(text: str) -> set[str]:
    """Those that GitHub gives to the headings of a page: the second of one name ends with -1, and so on."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    seen: Counter[str] = Counter()
    for heading in headings:
        seen[re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")] += 1
    return {f"{name}-{number}" if number else name for name, count in seen.items() for number in range(count)}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_every_choice_of_faults_that_a_page_names_is_one() -> None:
    names = [*(fault.name for fault in OF_NODES), *(fault.name for fault in cluster.FAULTS)]
    named = [
        shlex.split(glob)[0] for page in pages() for glob in re.findall(r"--only ('[^']+'|[^\s`']+)", page.read_text())
    ]
    assert named
    for glob in named:
        assert matching(names, glob), glob


# --- modules ---


def test_every_module_has_its_place_in_the_architecture_and_no_other_has() -> None:
    tables = (DOCS / "architecture.md").read_text().split("\n## Modules\n")[1].split("\n## ")[0]
    for package in ("actors", "coordinator"):
        table = tables.split(f"| `{package}/` |", 1)[1].split("\n\n", 1)[0]
        named = {
            cells[0].strip("`/"): sorted(re.findall(r"`(\w+)`", cells[2])) for cells in rows(table) if len(cells) == 3
        }
        folders = [ROOT / package, *(path.parent for path in (ROOT / package).glob("*/__init__.py"))]
        there = {
            folder.name if folder.name != package else ".": sorted(
                path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")
            )
            for folder in folders
        }

        assert named == there


# --- numbers ---

_PACE, _AGENT = Pace(slots=2), AgentSettings()

NUMBERS = {
    "peer-protocol.md": (
        f"{pace.MIN_CHUNK_BYTES >> 20} to {pace.FAST_CHUNK_BYTES >> 20} MiB",
        f"more than {pace.MAX_CHUNKS:,} of them, up to {pace.MAX_CHUNK_BYTES >> 20} MiB",
        f"at most {_PACE.unpassed} chunks that nobody has taken",
        f"up to {NEIGHBOURS} neighbours",
        f"every {_PACE.news_s:g} s, a sign of life after {gossip.SIGN_OF_LIFE_S:g} s. Nothing for"
        f" {3 * gossip.SIGN_OF_LIFE_S:g} s",
        f"at least {_PACE.takeover_s:g} s",
        f"gave {standing.RIGHT_PER_WRONG} right chunks for each wrong one it is quarantined",
        f"quarantined for {_PACE.quarantine_s:g} s, doubling to {standing.QUARANTINE_MAX_S / 3600:g} h",
        f"after {_PACE.quarantine_s:g} s, doubling to {standing.DEFAULT_MAX_S / 60:g} min",
        f"heeded for {_PACE.takeover_s:g} s in all",
        f"none in which {bases.MOST_MISSES} chunks in a row were others",
        f"no byte for {_PACE.silence_s:g} s, or a chunk slower than {wire.SLOWEST_BYTES_PER_S >> 10} KiB/s after"
        f" {wire.time_for(0):g} s",
        f"read at {gossip.FRAMES_PER_S:g} a second",
        f"{gossip.MAX_FRAME_BYTES >> 10} KiB or the size of the fill's bitmap, {wire.MAX_HEAD_BYTES:,} bytes",
        f"{peers.MAX_CONNECTIONS} in all, {peers.MAX_PER_ADDRESS} of one address",
        f"{peers.FIRST_HEAD_S:g} s to a first request, {peers.IDLE_S:g} s between two",
        f"{wire.HEAD_TIMEOUT_S:g} s for a head that has begun, {peers.STUCK_S:g} s without taking a byte",
    ),
    "reasons.md": (
        f"up to {_AGENT.chunk_tries} times without progress | {_AGENT.chunk_backoff_first_s:g} s,"
        f" doubling to {_AGENT.chunk_backoff_max_s:g} s",
        f"{_AGENT.backoff_first_s:g} s, doubling to {_AGENT.backoff_max_s:g} s",
        f"{resolver.FIRST_RETRY_S:g} s, doubling to {resolver.SLOWEST_RETRY_S:g} s, ±{resolver.JITTER * 100:g} %",
        f"credentials every {resolver.CREDENTIALS_LOOK_S:g} s",
        f"than {SIZE_TOLERANCE} times",
    ),
    "on-disk.md": (
        f"one buffer of {transfer.BLOCK_BYTES >> 10}Ki per connection",
        f"files up to {ingest.LATE_FILE_BYTES >> 10}Ki when they are written",
        f"files up to {files.SMALL_FILE_BYTES >> 20}Mi all together",
        f"at most {MARKER_BYTES >> 20}Mi",
    ),
    "metrics.md": (f"after {MAX_REASONS} different ones",),
    "architecture.md": (
        f"at most {looks.FRESH_S:g} s old",
        f"valid for {removals.ORDER_S:g} s",
        f"for {_PACE.takeover_s:g} s at most",
    ),
}
"""What pages say in numbers, made from the numbers of the code."""


@pytest.mark.parametrize(("page", "said"), [(page, said) for page, each in NUMBERS.items() for said in each])
def test_the_numbers_of_a_page_are_those_of_the_code(page: str, said: str) -> None:
    assert said in " ".join((DOCS / page).read_text().replace("└", "").replace("│", "").split())
