"""`localmodel import URI DIR`, which the Job of an import runs: `localmodel fill` for somebody who is not trusted.

The author of a cache named the source and the credentials, and must reach by this no more than by a cache on nodes:
only the schemes and addresses that an operator allows are read (`LOCALMODEL_ALLOW_ORIGINS`,
`LOCALMODEL_ALLOW_SCHEMES`), and what a Secret holds goes only where the same Secret says. Secrets are folders below
`--secrets`, a file for each key.
"""

from __future__ import annotations

import argparse
import base64
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from actors.addresses import Origins
from actors.disk.handles import Folder
from actors.disk.layout import Layout
from actors.disk.marker import load_marker
from actors.disk.second_names import SecondNames
from actors.disk.trash import Trash
from actors.manifest import StorageKey, second_key
from actors.schemes import Schemes
from actors.sources.options import SourceOptions
from actors.trust import Trust
from coordinator.cli.fill import add_fill_arguments, fill
from coordinator.control.credentials import load_options
from coordinator.plan.kserve_config import STORAGE_SECRET
from coordinator.plan.snapshot import Credentials


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    add_fill_arguments(parser)
    parser.add_argument("--namespace", required=True, metavar="NS", help="of the cache, for messages")
    parser.add_argument("--secrets", type=Path, required=True, metavar="FOLDER", help="where Secrets are mounted")
    parser.add_argument(
        "--storage-secret", default=STORAGE_SECRET, metavar="NAME", help="whose keys --storage-key names first"
    )
    parser.add_argument("--storage-key", metavar="KEY", help="spec.storage.key")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of spec.storage.parameters; repeatable"
    )
    parser.set_defaults(complain=parser.error)


def import_model(args: argparse.Namespace) -> int:
    """As `localmodel fill`, with what the cache names instead of the environment."""
    try:
        schemes = Schemes.parse(os.environ.get("LOCALMODEL_ALLOW_SCHEMES", ""), "")
        origins = Origins.parse(os.environ.get("LOCALMODEL_ALLOW_ORIGINS", ""))
    except ValueError as error:
        args.complain(f"$LOCALMODEL_ALLOW_SCHEMES, $LOCALMODEL_ALLOW_ORIGINS: {error}")
    pairs = (each.partition("=") for each in args.parameter)
    named = Credentials(
        storage_key=args.storage_key,
        parameters=tuple((name, value) for name, _, value in pairs),
        namespaced=True,
        namespace=args.namespace,
    )
    options = partial(
        load_options,
        named,
        partial(_mounted, args.secrets),
        namespace=args.namespace,
        own=SourceOptions.from_environ(trust=Trust.of_operator(schemes, origins, os.environ)),
        secret_name=args.storage_secret,
    )
    code = fill(args, options)
    if code == 0 and second_key(args.uri) is not None:
        _name_again(args.directory)
    return code


def _name_again(directory: Path) -> None:
    """The model is there, too, under the key of its URI without the slash, which later KServe gives to pods."""
    layout = Layout(directory.parent.parent)
    layout.make()
    with Folder.at(directory) as model:
        marker = load_marker(model)
    SecondNames(layout, Trash(layout, time.time)).ensure(StorageKey(directory.name), marker)


def _mounted(folder: Path, kind: str, name: str) -> Mapping[str, Any] | None:
    """A Secret as the kubelet mounts it. Of one that does not exist the folder is empty."""
    try:
        files = [each for each in (folder / name).iterdir() if not each.name.startswith("..") and each.is_file()]
    except OSError:
        return None
    if kind != "Secret" or not files:
        return None
    return {"data": {each.name: base64.b64encode(each.read_bytes()).decode() for each in files}}
