"""`localmodel inspect DIR`: what lies in a root, in the folder of a model, or in a fill under way. Changes nothing.

Ends with 0 if all is as it should be as far as names and sizes tell; with 1 if something is not, or DIR is not of
localmodel.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from actors.sizes import say_bytes
from coordinator.cli.arguments import folder
from coordinator.cli.inspection import Document, NothingOfOurs, inspect, troubles
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.kube.quantity import format_percent


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=folder)
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what is there")
    parser.epilog = "ends with 0 if all is well as far as names and sizes tell, 1 if not, 2 for a wrong command"


def inspect_folder(args: argparse.Namespace) -> int:
    directory: Path = args.directory
    try:
        found = inspect(directory)
    except NothingOfOurs as error:
        return _fail(args, "NotAModel", str(error))
    except OSError as error:
        return _fail(args, "Unreadable", f"{directory} cannot be read: {error.strerror}")
    wrong = troubles(found)
    if args.json:
        print_json({"ok": not wrong, **found, "troubles": [printable(each) for each in wrong]})
    else:
        for line in lines(found):
            say(printable(line))
    for each in wrong:
        tell(f"wrong: {printable(each)}")
    return 1 if wrong else 0


def lines(found: Document) -> Iterator[str]:
    """For people."""
    if found["kind"] == "root":
        yield from _root_lines(found)
    elif found["kind"] == "ingest":
        yield _ingest_line("a fill of", found)
    else:
        yield from _model_lines(found)


def _model_lines(found: Document) -> Iterator[str]:
    if "uri" not in found:
        yield f"no model: {found['damaged']}"
        return
    at = f" at {found['revision']}" if found.get("revision") else ""
    yield f"a model: {found['uri']}{at}"
    yield f"  {found['files']} files, {say_bytes(found['bytes'])}, {found.get('manifestDigest') or 'no digest'}"
    how = ", ".join(f"{count} by {name}" for name, count in sorted(found["verified"].items()))
    yield f"  verified when filled: {how or 'not'}; committed {found.get('finishedAt') or 'at an unknown time'}"
    origin, peers = say_bytes(found["bytesFromOrigin"]), say_bytes(found["bytesFromPeers"])
    yield f"  {origin} from the origin, {peers} from other nodes; owner {found['owner']}"
    scrub = found.get("scrub")
    if scrub is not None:
        read = (
            f"read again as a whole {scrub['verifiedAt']}" if "verifiedAt" in scrub else "not read again as a whole yet"
        )
        yield f"  {read}; file {scrub['nextFile'] + 1} of {found['files']} is next"
        if "repaired" in scrub:
            yield f"  repaired {scrub.get('repairedAt', '')}: {scrub['repaired']}"


def _root_lines(found: Document) -> Iterator[str]:
    free = say_bytes(found["freeBytes"])
    yield f"a root: {len(found['models'])} models, {len(found['ingests'])} fills under way, {free} free"
    yield f"  written by {found['writer'] or 'nobody yet'}"
    for model in found["models"]:
        if "uri" in model:
            yield f"  model {model['key']}: {model['uri']}, {model['files']} files, {say_bytes(model['bytes'])}"
        else:
            yield f"  model {model['key']}: {model['damaged']}"
    for ingest in found["ingests"]:
        yield _ingest_line(f"  fill {ingest['name']}:", ingest)
    for each in found["trash"]:
        yield f"  trash {each['name']}: {say_bytes(each['heldBytes'])}, an old copy, until no pod can have it open"
    for key in found["evicted"]:
        yield f"  evicted {key}: it made room for another model"
    for name in found["aside"]:
        yield f"  aside {name}: not of localmodel; move it away if you need it"


def _ingest_line(name: str, found: Document) -> str:
    if "uri" not in found:
        return f"{name} {found['damaged']}; {say_bytes(found['heldBytes'])} on the disk"
    far = format_percent(found["doneBytes"], found["bytes"])
    return (
        f"{name} {found['uri']}: {say_bytes(found['doneBytes'])} of {say_bytes(found['bytes'])} ({far}) are journaled"
    )


def _fail(args: argparse.Namespace, reason: str, message: str) -> int:
    tell(f"localmodel inspect: {printable(message)}")
    if args.json:
        print_failure(reason, message, retryable=False)
    return 1
