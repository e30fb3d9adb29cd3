"""Node selectors: the cases of Kubernetes' own nodeaffinity tests, in our words."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.kube.node_selector import compile_selector

LABELS = {"foo": "bar", "zone": "a", "gpus": "8", "empty": "", "big": "99999999999999999999"}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": operator, "values": list(values)} if values else {"key": key, "operator": operator}


def labels(*expressions: dict[str, Any]) -> dict[str, Any]:
    return {"matchExpressions": list(expressions)}


def fields(*expressions: dict[str, Any]) -> dict[str, Any]:
    return {"matchFields": list(expressions)}


@pytest.mark.parametrize(
    ("terms", "matches"),
    [
        pytest.param([], False, id="no terms match nothing"),
        pytest.param(None, False, id="absent terms match nothing"),
        pytest.param([{}], False, id="an empty term matches nothing"),
        pytest.param([labels()], False, id="a term with an empty list matches nothing"),
        pytest.param([{}, labels(expression("foo", "Exists"))], True, id="an empty term does not spoil the others"),
        pytest.param([labels(expression("foo", "In", "bar", "value2"))], True, id="In with the value"),
        pytest.param([labels(expression("foo", "In", "value1"))], False, id="In without the value"),
        pytest.param([labels(expression("absent", "In", "bar"))], False, id="In on an absent label"),
        pytest.param([labels(expression("empty", "In", ""))], True, id="In with the empty value"),
        pytest.param([labels(expression("foo", "NotIn", "value1"))], True, id="NotIn without the value"),
        pytest.param([labels(expression("foo", "NotIn", "bar"))], False, id="NotIn with the value"),
        pytest.param([labels(expression("absent", "NotIn", "bar"))], True, id="NotIn on an absent label holds"),
        pytest.param([labels(expression("foo", "Exists"))], True, id="Exists"),
        pytest.param([labels(expression("absent", "Exists"))], False, id="Exists on an absent label"),
        pytest.param([labels(expression("absent", "DoesNotExist"))], True, id="DoesNotExist on an absent label"),
        pytest.param([labels(expression("foo", "DoesNotExist"))], False, id="DoesNotExist on a label"),
        pytest.param([labels(expression("gpus", "Gt", "7"))], True, id="Gt below"),
        pytest.param([labels(expression("gpus", "Gt", "8"))], False, id="Gt is strict"),
        pytest.param([labels(expression("gpus", "Lt", "9"))], True, id="Lt above"),
        pytest.param([labels(expression("gpus", "Lt", "8"))], False, id="Lt is strict"),
        pytest.param([labels(expression("gpus", "Gt", "-1"))], True, id="Gt compares numbers, not text"),
        pytest.param([labels(expression("foo", "Gt", "1"))], False, id="Gt on a label that is no number"),
        pytest.param([labels(expression("big", "Gt", "1"))], False, id="Gt on a number beyond 64 bits"),
        pytest.param([labels(expression("absent", "Lt", "1"))], False, id="Lt on an absent label"),
        pytest.param(
            [labels(expression("foo", "In", "bar"), expression("zone", "In", "b"))], False, id="expressions are ANDed"
        ),
        pytest.param(
            [labels(expression("foo", "In", "x")), labels(expression("zone", "In", "a"))], True, id="terms are ORed"
        ),
        pytest.param([fields(expression("metadata.name", "In", "host_1"))], True, id="the node's name"),
        pytest.param([fields(expression("metadata.name", "In", "host_2"))], False, id="another node's name"),
        pytest.param([fields(expression("metadata.name", "NotIn", "host_2"))], True, id="not another node's name"),
        pytest.param(
            [{**fields(expression("metadata.name", "In", "host_1")), **labels(expression("foo", "In", "bar"))}],
            True,
            id="fields and labels that both hold",
        ),
        pytest.param(
            [{**fields(expression("metadata.name", "In", "host_1")), **labels(expression("foo", "In", "x"))}],
            False,
            id="fields and labels are ANDed",
        ),
    ],
)
def test_matching(terms: Any, matches: bool) -> None:
    assert compile_selector({"nodeSelectorTerms": terms}).matches("host_1", LABELS) is matches


@pytest.mark.parametrize(
    ("term", "names"),
    [
        pytest.param(labels(expression("foo", "Like", "bar")), "Like", id="an unknown operator"),
        pytest.param(labels(expression("foo", "In")), "In", id="In without values"),
        pytest.param(labels(expression("foo", "Exists", "bar")), "Exists", id="Exists with values"),
        pytest.param(labels(expression("gpus", "Gt", "1", "2")), "Gt", id="Gt with two values"),
        pytest.param(labels(expression("gpus", "Gt", "many")), "integer", id="Gt with text"),
        pytest.param(labels({"operator": "Exists"}), "key", id="no key"),
        pytest.param(
            labels({"key": "foo", "operator": "In", "values": [1]}), "strings", id="a value that is no string"
        ),
        pytest.param(fields(expression("metadata.uid", "In", "x")), "metadata.uid", id="an unknown field"),
        pytest.param(fields(expression("metadata.name", "Exists")), "metadata.name", id="an operator fields lack"),
        pytest.param(fields(expression("metadata.name", "In", "a", "b")), "exactly one", id="two names in one field"),
        pytest.param({"matchExpressions": "foo"}, "matchExpressions", id="expressions that are no list"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_by_name(term: dict[str, Any], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        compile_selector({"nodeSelectorTerms": [term]})
