"""Label and field selectors, as query strings, into predicates.

labels   env=prod,tier!=db,stage in (a,b),stage notin (c),gpu,!cpu
fields   metadata.name=x,type!=Normal
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from coordinator.dev.apiserver.errors import bad_request

Predicate = Callable[[Mapping[str, Any]], bool]

_SET = re.compile(r"^(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s+\((?P<values>[^()]*)\)$")
_EQUAL = re.compile(r"^(?P<key>[^\s!=,()]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^\s!=,()]*)$")
_EXISTS = re.compile(r"^(?P<absent>!?)\s*(?P<key>[^\s!=,()]+)$")


def label_selector(text: str) -> Predicate:
    """Raises StatusError 400 for what is not a selector."""
    requirements = [_label_requirement(part.strip()) for part in _split(text) if part.strip()]
    return lambda value: _all(requirements, value.get("metadata", {}).get("labels") or {})


def selects(selector: Any, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector, as it stands in an object, selects these labels. None and {} select everything."""
    selector = selector or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for each in selector.get("matchExpressions") or ():
        key, values = each.get("key"), each.get("values") or ()
        holds = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not holds.get(each.get("operator"), False):
            return False
    return True


def field_selector(text: str, selectable: tuple[str, ...]) -> Predicate:
    """Raises StatusError 400 for a field that is not selectable."""
    allowed = ("metadata.name", "metadata.namespace", *selectable)
    requirements: list[Callable[[Mapping[str, Any]], bool]] = []
    for part in filter(None, text.split(",")):
        path, operator, wanted = _field_requirement(part)
        if path not in allowed:
            raise bad_request(f"field label not supported: {path}")
        requirements.append(_field_predicate(path, operator != "!=", wanted))
    return lambda value: _all(requirements, value)


def _all(requirements: list[Callable[[Mapping[str, Any]], bool]], value: Mapping[str, Any]) -> bool:
    return all(requirement(value) for requirement in requirements)


def _split(text: str) -> list[str]:
    """At the commas that are not inside parentheses."""
    return re.split(r",(?![^(]*\))", text)


def _label_requirement(text: str) -> Callable[[Mapping[str, Any]], bool]:
    if found := _SET.match(text):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(text):
        key, value = found["key"], found["value"]
        if found["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.match(text):
        key, absent = found["key"], bool(found["absent"])
        return lambda labels: (key in labels) is not absent
    raise bad_request(f"unable to parse requirement: {text!r} is not a label selector")


def _field_requirement(text: str) -> tuple[str, str, str]:
    found = re.match(r"^([^=!]+)(==|!=|=)(.*)$", text)
    if found is None:
        raise bad_request(f"invalid selector: {text!r}; can't understand {text!r}")
    return found[1], found[2], found[3]


def _field_predicate(path: str, equal: bool, wanted: str) -> Callable[[Mapping[str, Any]], bool]:
    parts = path.split(".")

    def matches(value: Mapping[str, Any]) -> bool:
        found: Any = value
        for part in parts:
            found = found.get(part) if isinstance(found, Mapping) else None
        text = str(found).lower() if isinstance(found, bool) else "" if found is None else str(found)
        return (text == wanted) is equal

    return matches
