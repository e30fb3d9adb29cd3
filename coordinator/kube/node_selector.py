"""Which nodes a PersistentVolume's `nodeAffinity.required` names: the semantics of Kubernetes' scheduler, exactly.

Terms are ORed, the expressions and fields of one term ANDed; a term with neither matches nothing, and so does an
affinity without terms. The rules are those of `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`
(https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#node-affinity).

A selector is compiled once, when its object is read, so that matching a node costs a few dictionary look-ups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Requirement = Callable[[str | None], bool]
"""Holds for a label's value; None: the node has no such label."""

_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class _Term:
    labels: tuple[tuple[str, Requirement], ...]
    names: tuple[Requirement, ...]

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        return all(holds(labels.get(key)) for key, holds in self.labels) and all(holds(name) for holds in self.names)


@dataclass(frozen=True, slots=True)
class NodeSelector:
    terms: tuple[_Term, ...]

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        return any(term.matches(name, labels) for term in self.terms)


def compile_selector(selector: Mapping[str, Any]) -> NodeSelector:
    """What `{"nodeSelectorTerms": […]}` says. Raises ValueError for what Kubernetes would refuse."""
    if not isinstance(selector, Mapping):
        raise ValueError("nodeAffinity.required must be an object with nodeSelectorTerms")
    terms = []
    for term in _objects(selector.get("nodeSelectorTerms"), "nodeSelectorTerms"):
        expressions = _objects(term.get("matchExpressions"), "matchExpressions")
        fields = _objects(term.get("matchFields"), "matchFields")
        if not expressions and not fields:
            continue  # an empty term matches nothing
        terms.append(_Term(tuple(_label(e) for e in expressions), tuple(_field(f) for f in fields)))
    return NodeSelector(tuple(terms))


def _label(expression: Mapping[str, Any]) -> tuple[str, Requirement]:
    key, operator, values = expression.get("key"), expression.get("operator"), _values(expression)
    if not isinstance(key, str) or not key:
        raise ValueError("a match expression has no key")
    match operator:
        case "In" | "NotIn" if not values:
            raise ValueError(f"operator {operator} on {key!r} needs at least one value")
        case "Exists" | "DoesNotExist" if values:
            raise ValueError(f"operator {operator} on {key!r} takes no values")
        case "In":
            return key, lambda label: label in values
        case "NotIn":
            return key, lambda label: label not in values  # holds for a node without the label, as in Kubernetes
        case "Exists":
            return key, lambda label: label is not None
        case "DoesNotExist":
            return key, lambda label: label is None
        case "Gt" | "Lt":
            bound = _integer(next(iter(values))) if len(values) == 1 else None
            if bound is None:
                raise ValueError(f"operator {operator} on {key!r} needs exactly one integer")
            return key, _greater(bound) if operator == "Gt" else _less(bound)
        case _:
            raise ValueError(f"unknown operator {operator!r} on {key!r}")


def _field(expression: Mapping[str, Any]) -> Requirement:
    """Kubernetes knows one node field, `metadata.name`, and two operators on it, each with exactly one value."""
    key, operator, values = expression.get("key"), expression.get("operator"), _values(expression)
    if key != "metadata.name":
        raise ValueError(f"unknown node field {key!r}; only metadata.name can be matched")
    if operator not in ("In", "NotIn") or len(values) != 1:
        raise ValueError("matchFields on metadata.name needs operator In or NotIn and exactly one value")
    return (lambda name: name in values) if operator == "In" else (lambda name: name not in values)


def _greater(bound: int) -> Requirement:
    return lambda label: (value := _integer(label)) is not None and value > bound


def _less(bound: int) -> Requirement:
    return lambda label: (value := _integer(label)) is not None and value < bound


def _integer(text: str | None) -> int | None:
    """As Go's `strconv.ParseInt(text, 10, 64)`; None for what it refuses."""
    if text is None or not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 63 else None


def _values(expression: Mapping[str, Any]) -> frozenset[str]:
    values = expression.get("values") or ()
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError("the values of a match expression must be a list of strings")
    return frozenset(values)


def _objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{name} must be a list of objects")
    return value
