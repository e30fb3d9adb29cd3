"""CEL rules in a schema (`x-kubernetes-validations`), transition rules included.

The language and its standard functions, not Kubernetes' extension libraries (quantity, url, …): a rule that needs
those fails with an error that says so. Nor are types checked or costs estimated when a rule is defined: a real server
refuses a rule about a field that the schema does not have, and one about strings and lists without a maximum. https://kubernetes.io/docs/reference/using-api/cel/
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import celpy

from coordinator.dev.apiserver.errors import Cause, show
from coordinator.dev.apiserver.schema import Schema, merge_keys

ERRORS = (celpy.CELEvalError, celpy.CELParseError, TypeError, ValueError, KeyError)
_WORDS = {"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import",
          "let", "loop", "package", "namespace", "return", "var", "void", "while"}  # fmt: skip


def check(value: Any, old: Any, schema: Schema, path: str = "") -> list[Cause]:
    """Every rule that `value` breaks. `old` is the stored value; None: there is none, transition rules are skipped."""
    return list(_check(value, old, schema, path))


def compiles(rule: str) -> str | None:
    """Why `rule` is not CEL; None if it is."""
    try:
        program(rule)
    except celpy.CELParseError as error:
        return str(error)
    return None


def rules_of(schema: Schema, path: str = "") -> Iterator[tuple[str, str]]:
    """Every rule in a schema, with its path."""
    for index, rule in enumerate(schema.get("x-kubernetes-validations", ())):
        yield f"{path}.x-kubernetes-validations[{index}].rule", rule["rule"]
    for name, child in schema.get("properties", {}).items():
        yield from rules_of(child, f"{path}.properties[{name}]")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), Mapping):
            yield from rules_of(schema[name], f"{path}.{name}")


def _check(value: Any, old: Any, schema: Schema, path: str) -> Iterator[Cause]:
    if value is None:
        return
    for rule in schema.get("x-kubernetes-validations", ()):
        if re.search(r"\boldSelf\b", rule["rule"]) and old is None:
            continue
        yield from _apply(rule, value, old, schema, path)
    if isinstance(value, dict):
        properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
        before = old if isinstance(old, dict) else {}
        for key, item in value.items():
            child = properties.get(key, additional)
            if isinstance(child, Mapping):
                yield from _check(item, before.get(key), child, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, item in enumerate(value):
            yield from _check(item, _counterpart(item, old, schema), schema["items"], f"{path}[{index}]")


def _counterpart(item: Any, old: Any, schema: Schema) -> Any:
    """The item of the old list that `item` replaces: only `map` lists say which that is."""
    keys = merge_keys(schema)
    if not keys or not isinstance(old, list) or not isinstance(item, dict):
        return None
    return next((each for each in old if all(each.get(key) == item.get(key) for key in keys)), None)


def _apply(rule: Mapping[str, Any], value: Any, old: Any, schema: Schema, path: str) -> Iterator[Cause]:
    context = {"self": _cel(value, schema)}
    if old is not None:
        context["oldSelf"] = _cel(old, schema)
    try:
        if bool(program(rule["rule"]).evaluate(context)):
            return
        message = rule.get("message") or f"failed rule: {rule['rule']}"
        if "messageExpression" in rule:
            message = str(program(rule["messageExpression"]).evaluate(context))
        shown = "" if isinstance(value, dict | list) else f"{show(value)}: "
    except ERRORS as error:
        why = error.args[0] if error.args else error
        message = f"{why} evaluating rule: {rule.get('message') or rule['rule']}"
        shown = f"{show(schema.get('type', 'object'))}: "
    field = path + rule.get("fieldPath", "") if path else rule.get("fieldPath", "").removeprefix(".")
    reason = rule.get("reason", "FieldValueInvalid")
    body = {
        "FieldValueRequired": f"Required value: {message}",
        "FieldValueForbidden": f"Forbidden: {message}",
        "FieldValueDuplicate": f"Duplicate value: {shown.removesuffix(': ')}",
    }
    yield Cause(reason, body.get(reason, f"Invalid value: {shown}{message}"), field or "<nil>")


@functools.cache
def _environment() -> celpy.Environment:
    return celpy.Environment()


@functools.lru_cache(maxsize=1000)
def program(rule: str) -> Any:
    return _environment().program(_environment().compile(rule))


def _cel(value: Any, schema: Schema) -> Any:
    """`value` as CEL sees it: declared properties under their escaped names, times as timestamps."""
    types = celpy.celtypes
    if isinstance(value, dict):
        properties, additional = schema.get("properties", {}), schema.get("additionalProperties", {})
        additional = additional if isinstance(additional, Mapping) else {}
        return types.MapType(
            {
                types.StringType(_escape(key) if key in properties else key): _cel(
                    item, properties.get(key, additional)
                )
                for key, item in value.items()
            }
        )
    if isinstance(value, list):
        return types.ListType([_cel(item, schema.get("items", {})) for item in value])
    if isinstance(value, str) and schema.get("format") == "date-time":
        return types.TimestampType(value)
    return celpy.json_to_cel(value)


def _escape(name: str) -> str:
    """A property name as an identifier, as Kubernetes does it."""
    if name in _WORDS:
        return f"__{name}__"
    for text, escaped in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")):
        name = name.replace(text, escaped)
    return name
