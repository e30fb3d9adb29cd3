"""JSON of commands against its schema in docs/json/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "json"


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return found


def check_document(name: str, document: object) -> None:
    """Nothing is missing, nothing is of another type, and nothing is there that the schema does not name."""
    Draft202012Validator(schema(name)).validate(document)
