"""Asking for another try at once: an annotation of a cache, in which each request has a name.

    localmodel.kserve.io/retry: {"*": "2026-11-27T23:00:00.123Z"}        on every node, and its source
                                {"n17": "2026-11-27T23:04:31.007Z"}      on one

Level-triggered: a name that an agent, or the resolver, has not heeded yet ends the wait that follows a failure, and so
does no second time; an attempt that begins heeds what is there. It stays in the object and does nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from actors.messages import NodeName

RETRY = "localmodel.kserve.io/retry"
EVERYWHERE = "*"
MOST_NODES = 100
"""An annotation that would name more nodes names all."""
_LONGEST = 100
_MOST_CHARACTERS = MOST_NODES * 400

Retries = Mapping[str, str]
"""The name of the last request by node; that of EVERYWHERE for all others."""


def read_retries(annotation: object) -> Retries:
    """Anybody may have written it: what is not as above is left out."""
    if not isinstance(annotation, str) or len(annotation) > _MOST_CHARACTERS:
        return {}
    try:
        found = json.loads(annotation)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or len(found) > MOST_NODES:
        return {}
    return {node: name for node, name in found.items() if isinstance(name, str) and 0 < len(name) <= _LONGEST}


def asked(retries: Retries, name: str, node: NodeName | None) -> str:
    """The annotation with one more request. One for all nodes takes the place of those for some."""
    if node is None or len({*retries, node}) > MOST_NODES:
        return json.dumps({EVERYWHERE: name})
    return json.dumps({**retries, node: name})


def name_for(retries: Retries, node: NodeName) -> str:
    """What this node is asked; "": nothing."""
    return retries.get(node) or retries.get(EVERYWHERE, "")


def name_for_source(retries: Retries) -> str:
    """What the resolver is asked: by any request, since a node alone cannot fill without the source."""
    return ",".join(sorted(retries.values()))
