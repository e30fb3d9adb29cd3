"""The place where a model's signature is checked: a copy that is not signed as it must be is never committed.

    fill ──► every file verified ──► check_signature ──► committed, or SignatureInvalid and what was there stays

Without a check everything is accepted. One is a function of an operator's own, named by `LOCALMODEL_SIGNATURE_CHECK`
as `module:function`, which the agent can import: it gets the folder and the manifest, reads what it needs (a
`model.sig` of OpenSSF model signing, say), and raises for what it does not accept.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from actors.errors import SignatureInvalid
from actors.manifest import Manifest

SignatureCheck = Callable[[Path, Manifest], None]
"""Raises ValueError, with the reason, for files that are not signed as they must be."""


def check_signature(folder: Path, manifest: Manifest, check: SignatureCheck | None) -> None:
    """Returns for what may be committed. Raises SignatureInvalid, also where the check itself fails.

    `folder` holds the files, complete and verified; None: there is no check, and everything is accepted.
    """
    if check is None:
        return
    try:
        check(folder, manifest)
    except Exception as error:
        why = str(error) if isinstance(error, ValueError) else f"the check failed: {type(error).__name__}: {error}"
        name = manifest.revision or manifest.digest or "what the source has"
        raise SignatureInvalid(f"{manifest.source.uri} at {name} is not signed as it must be: {why}") from error


def load_check(name: str) -> SignatureCheck | None:
    """The function that `module:function` names; of "" None. Raises ValueError for what is none."""
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"LOCALMODEL_SIGNATURE_CHECK: {name!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"LOCALMODEL_SIGNATURE_CHECK: {name!r} is no function")
    check: SignatureCheck = found
    return check
