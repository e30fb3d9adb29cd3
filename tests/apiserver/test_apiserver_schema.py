"""Structural schemas as pure functions: what is pruned, defaulted, refused, and what CEL rules see."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.dev.apiserver import rules, schema

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


PRUNED: dict[str, tuple[Any, Any, list[str]]] = {
    "an unknown field goes, with its path": (
        an_object(spec=an_object(a=STRING)),
        {"spec": {"a": "x", "b": 1}},
        ["spec.b"],
    ),
    "an unknown field of a list item goes": (
        an_object(items={"type": "array", "items": an_object(a=STRING)}),
        {"items": [{"a": "x"}, {"b": 1}]},
        ["items[1].b"],
    ),
    "map values are pruned, map keys stay": (
        an_object(m={"type": "object", "additionalProperties": an_object(a=STRING)}),
        {"m": {"any": {"a": "x", "b": 1}}},
        ["m.any.b"],
    ),
    "what is preserved is preserved all the way down": (
        an_object(m={"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
        {"m": {"x": {"y": 1}}},
        [],
    ),
    "a known field beside preserved ones is still pruned inside": (
        an_object(m={"x-kubernetes-preserve-unknown-fields": True, **an_object(known=an_object(a=STRING))}),
        {"m": {"x": 1, "known": {"a": "x", "b": 1}}},
        ["m.known.b"],
    ),
    "the envelope of an object is never unknown": (
        an_object(),
        {"apiVersion": "v1", "kind": "K", "metadata": {"name": "a"}},
        [],
    ),
    "an embedded resource keeps its envelope": (
        an_object(t={"x-kubernetes-embedded-resource": True, **an_object()}),
        {"t": {"apiVersion": "v1", "kind": "K", "metadata": {}, "other": 1}},
        ["t.other"],
    ),
    "a schema that allows any map value prunes nothing": (
        an_object(m={"type": "object", "additionalProperties": True}),
        {"m": {"x": 1}},
        [],
    ),
}


@pytest.mark.parametrize(("known", "value", "unknown"), PRUNED.values(), ids=PRUNED)
def test_prune(known: Any, value: Any, unknown: list[str]) -> None:
    pruned, found = schema.prune(value, known)
    assert found == unknown
    assert schema.prune(pruned, known) == (pruned, [])


DEFAULTED: dict[str, tuple[Any, Any, Any]] = {
    "an absent field gets its default": (an_object(a={**STRING, "default": "x"}), {}, {"a": "x"}),
    "a given field keeps its value": (an_object(a={**STRING, "default": "x"}), {"a": ""}, {"a": ""}),
    "a null that is not allowed counts as absent": (an_object(a={**STRING, "default": "x"}), {"a": None}, {"a": "x"}),
    "a null that is not allowed goes where there is no default": (
        an_object(a=STRING, m={"type": "object", "additionalProperties": STRING}),
        {"a": None, "m": {"k": None}},
        {"m": {}},
    ),
    "a null in a list stays, to be refused": (
        an_object(a={"type": "array", "items": STRING}),
        {"a": [None]},
        {"a": [None]},
    ),
    "a null that is allowed is a value": (
        an_object(a={**STRING, "default": "x", "nullable": True}),
        {"a": None},
        {"a": None},
    ),
    "an absent parent is not made for its children": (an_object(p=an_object(a={**STRING, "default": "x"})), {}, {}),
    "a default is itself defaulted": (
        an_object(p={**an_object(a={**STRING, "default": "x"}), "default": {}}),
        {},
        {"p": {"a": "x"}},
    ),
    "map values are defaulted": (
        an_object(m={"type": "object", "additionalProperties": an_object(a={**STRING, "default": "x"})}),
        {"m": {"k": {}}},
        {"m": {"k": {"a": "x"}}},
    ),
}


@pytest.mark.parametrize(("known", "value", "expected"), DEFAULTED.values(), ids=DEFAULTED)
def test_default(known: Any, value: Any, expected: Any) -> None:
    assert schema.default(value, known) == expected


def wrong_type(shown: str, wanted: str) -> str:
    return f"a: Invalid value: {shown}: a in body must be of type {wanted}: {shown}"


TIME = {"type": "string", "format": "date-time"}
REFUSED: dict[str, tuple[Any, Any, list[str]]] = {
    "nothing about a value that fits": (INTEGER, 3, []),
    "a whole float is an integer": (INTEGER, 3.0, []),
    "a boolean is no integer": (INTEGER, True, [wrong_type('"boolean"', "integer")]),
    "a null where none is allowed": (STRING, None, [wrong_type('"null"', "string")]),
    "a null where it is allowed": ({**STRING, "nullable": True}, None, []),
    "an int32 that does not fit": ({**INTEGER, "format": "int32"}, 2**31, [wrong_type("2147483648", "int32")]),
    "a time": (TIME, "2026-01-02T03:04:05.123456Z", []),
    "a time with an offset": (TIME, "2026-01-02T03:04:05+01:00", []),
    "a date for a time": (TIME, "2026-01-02", [wrong_type('"2026-01-02"', "date-time")]),
    "a day that does not exist": (TIME, "2026-02-30T00:00:00Z", [wrong_type('"2026-02-30T00:00:00Z"', "date-time")]),
    "an exclusive bound": (
        {**INTEGER, "minimum": 0, "exclusiveMinimum": True},
        0,
        ["a: Invalid value: 0: a in body should be greater than 0"],
    ),
    "a step": ({**INTEGER, "multipleOf": 5}, 7, ["a: Invalid value: 7: a in body should be a multiple of 5"]),
    "too short": (
        {**STRING, "minLength": 2},
        "x",
        ['a: Invalid value: "x": a in body should be at least 2 chars long'],
    ),
    "no alternative": (
        {"anyOf": [STRING, INTEGER]},
        [],
        ['a: Invalid value: "": "a" must validate at least one schema (anyOf)'],
    ),
    "two alternatives where one is wanted": (
        {"oneOf": [INTEGER, {"minimum": 1}]},
        3,
        ['a: Invalid value: "": "a" must validate one and only one schema (oneOf)'],
    ),
    "what must not be": (
        {"not": {"enum": ["x"]}},
        "x",
        ['a: Invalid value: "": "a" must not validate the schema (not)'],
    ),
    "an int or string that is neither": (
        {"x-kubernetes-int-or-string": True},
        [],
        [wrong_type('"array"', "integer,string")],
    ),
    "too few properties": (
        {"type": "object", "minProperties": 1},
        {},
        ["a: Invalid value: 0: a in body should have at least 1 properties"],
    ),
    "too many items": ({"type": "array", "maxItems": 1}, [1, 2], ["a: Too many: 2: must have at most 1 items"]),
}


@pytest.mark.parametrize(("known", "value", "expected"), REFUSED.values(), ids=REFUSED)
def test_validate(known: Any, value: Any, expected: list[str]) -> None:
    assert [str(cause) for cause in schema.validate(value, known, "a")] == expected


def a_rule(rule: str, **rest: str) -> dict[str, Any]:
    return {"x-kubernetes-validations": [{"rule": rule, **rest}]}


MAP_LIST = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
    "items": an_object(name=STRING, size={**INTEGER, **a_rule("self >= oldSelf", message="never smaller")}),
}
RULES: dict[str, tuple[Any, Any, Any, list[str]]] = {
    "a rule that holds": (an_object() | a_rule("has(self.a)"), {"a": 1}, None, []),
    "a rule that fails names itself": (
        an_object() | a_rule("has(self.a)"),
        {},
        None,
        ["spec: Invalid value: failed rule: has(self.a)"],
    ),
    "a rule about change is skipped at creation": (STRING | a_rule("self == oldSelf"), "x", None, []),
    "a rule about change fails at an update": (
        STRING | a_rule("self == oldSelf", message="immutable"),
        "y",
        "x",
        ['spec: Invalid value: "y": immutable'],
    ),
    "a message may be an expression": (
        INTEGER | a_rule("self < 3", messageExpression="'not ' + string(self)"),
        4,
        None,
        ["spec: Invalid value: 4: not 4"],
    ),
    "a reason and a field may be named": (
        an_object(a=STRING) | a_rule("has(self.a)", message="give a", reason="FieldValueRequired", fieldPath=".a"),
        {},
        None,
        ["spec.a: Required value: give a"],
    ),
    "items of a list with keys are compared by key": (
        MAP_LIST,
        [{"name": "b", "size": 1}, {"name": "a", "size": 5}],
        [{"name": "a", "size": 3}, {"name": "b", "size": 2}],
        ["spec[0].size: Invalid value: 1: never smaller"],
    ),
    "a new item of a list with keys has no past": (
        MAP_LIST,
        [{"name": "c", "size": 0}],
        [{"name": "a", "size": 3}],
        [],
    ),
    "times are times": (
        an_object(t=TIME) | a_rule("self.t > timestamp('2026-01-01T00:00:00Z')"),
        {"t": "2026-06-01T00:00:00Z"},
        None,
        [],
    ),
    "a property that is no identifier is escaped": (
        an_object(**{"a-b": INTEGER, "in": INTEGER}) | a_rule("self.a__dash__b == self.__in__"),
        {"a-b": 1, "in": 1},
        None,
        [],
    ),
    "a rule that cannot be evaluated is a failure that says so": (
        an_object() | a_rule("self.nothing == 1"),
        {},
        None,
        ["evaluating rule: self.nothing == 1"],
    ),
}


@pytest.mark.parametrize(("known", "value", "old", "expected"), RULES.values(), ids=RULES)
def test_rules(known: Any, value: Any, old: Any, expected: list[str]) -> None:
    found = [str(cause) for cause in rules.check(value, old, known, "spec")]
    assert len(found) == len(expected)
    assert all(part in cause for part, cause in zip(expected, found, strict=True)), found
