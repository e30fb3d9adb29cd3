"""A custom kind with one of everything that an API server does for a schema, for the contract suites."""

from __future__ import annotations

import copy
import uuid
from typing import Any

GROUP, VERSION, PLURAL, KIND = "contract.localmodel.dev", "v1", "widgets", "Widget"
API_VERSION = f"{GROUP}/{VERSION}"
WIDGETS = f"/apis/{GROUP}/{VERSION}/widgets"
"""Cluster-scoped."""
GADGETS = f"/apis/{GROUP}/{VERSION}/namespaces/default/gadgets"
"""The same kind in a namespace."""

_QUANTITY = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": r"^[0-9]+(Ki|Mi|Gi)?$",
    "x-kubernetes-int-or-string": True,
}
# All that a rule reads is bounded: a real server estimates what a rule may cost, and refuses one without an end.
_SPEC = {
    "type": "object",
    "required": ["uri", "size"],
    "description": "What is wanted.",
    "properties": {
        "uri": {
            "type": "string",
            "description": "Where it comes from.",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "uri is immutable"}],
        },
        "size": _QUANTITY,
        "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
        "replicas": {"type": "integer", "format": "int32", "minimum": 0, "maximum": 10},
        "note": {"type": "string", "maxLength": 20, "nullable": True},
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 20},
            "x-kubernetes-list-type": "set",
            "maxItems": 4,
        },
        "groups": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "weight": {"type": "integer", "default": 1}},
            },
        },
        "parameters": {"type": "object", "additionalProperties": {"type": "string"}},
        "anything": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
    "x-kubernetes-validations": [
        {
            "rule": "!has(self.replicas) || !has(self.tags) || size(self.tags) <= self.replicas",
            "messageExpression": "'more tags than replicas: ' + self.tags[0]",
        }
    ],
}
_STATUS = {
    "type": "object",
    "properties": {
        "phase": {"type": "string"},
        "observed": {"type": "integer", "format": "int64"},
        "conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["type", "status"],
                "properties": {
                    "type": {"type": "string"},
                    "status": {"type": "string"},
                    "reason": {"type": "string"},
                    "message": {"type": "string"},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                },
            },
        },
    },
}


def crd(plural: str = PLURAL, kind: str = KIND, *, scope: str = "Cluster", short: str = "wdg") -> dict[str, Any]:
    schema = {"type": "object", "description": "A thing.", "properties": {"spec": _SPEC, "status": _STATUS}}
    columns = [
        {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
        {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Uri", "type": "string", "jsonPath": ".spec.uri", "priority": 1},
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": scope,
            "names": {
                "plural": plural,
                "kind": kind,
                "singular": kind.lower(),
                "listKind": f"{kind}List",
                "shortNames": [short],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": copy.deepcopy(schema)},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


CRDS = (crd(), crd("gadgets", "Gadget", scope="Namespaced", short="gdg"))


def unique(prefix: str = "w") -> str:
    """A name no other test uses, so that tests can share a server."""
    return f"{prefix}-{uuid.uuid4().hex[:8]}"


def a_widget(name: str, *, kind: str = KIND, **spec: Any) -> dict[str, Any]:
    """A valid widget; a field given as None is left out."""
    wanted = {"uri": "hf://a/b", "size": "1Gi", **spec}
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {key: value for key, value in wanted.items() if value is not None},
    }
