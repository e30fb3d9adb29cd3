"""JSON of the disk, which is shared with pods: in memory for no more than the largest of ours takes.

A value of three bytes in a document takes a hundred in memory, so that a file of an allowed size could end an agent,
and again when it starts.
"""

from __future__ import annotations

import json
from typing import Any

from actors.sizes import say_bytes

MOST_BYTES = 128 << 20
"""Half a million files in a marker take about 100 MiB."""
MOST_VALUES = 4_000_000
"""A marker has seven for a file."""


def parsed(content: bytes) -> Any:
    """Raises ValueError, RecursionError."""
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if values > MOST_VALUES or len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_VALUES} values, or {say_bytes(MOST_BYTES)}")
    return json.loads(content)
