"""Every reason that the code can give, read from its syntax, so that no list of them has to be kept.

A reason is a CamelCase word that
    stands where a parameter or a field named `reason` takes it, as an argument or as a default,
    is assigned to something named `reason`, or is the value of the key "reason" of a dictionary, or
    names a class below LocalModelError, unless the class gives another reason.

Where it is not written out, it is followed through conditional expressions, local names, tables of the module, and the
functions that return it, alone or in a tuple.

    python -m tests.kit.code_reasons [REASON]       prints which modules give it
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_REASON = re.compile(r"[A-Z][a-z]+[A-Za-z]*|[A-Z]{2,}[a-z]\w*")
_ROOT = "LocalModelError"
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class _Code:
    """What is known of all modules before any is searched."""

    modules: Mapping[str, ast.Module]
    positions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Of the argument `reason`, by the name of the function or class."""
    bases: dict[str, set[str]] = field(default_factory=dict)
    functions: dict[str, list[tuple[_Search, _Function]]] = field(default_factory=lambda: defaultdict(list))


def reasons(files: Iterable[Path], root: Path) -> Mapping[str, frozenset[str]]:
    """Each reason, with the modules that give it, such as `actors.disk.store`."""
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts): ast.parse(path.read_text(), str(path)) for path in files
    }
    code = _Code(modules)
    for tree in modules.values():
        _declare(code, tree)
    found: dict[str, set[str]] = defaultdict(set)
    searches = {name: _Search(code, tree) for name, tree in modules.items()}
    for name, search in searches.items():
        for reason in search.found():
            found[reason].add(name)
    return {reason: frozenset(places) for reason, places in found.items()}


def _declare(code: _Code, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg not in ("self", "cls")]
            if "reason" in names and node.name != "__init__":
                code.positions[node.name].add(names.index("reason"))
        elif isinstance(node, ast.ClassDef):
            code.bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
            if (position := _position(node)) is not None:
                code.positions[node.name].add(position)


def _position(node: ast.ClassDef) -> int | None:
    """Of `reason` among the arguments that make one."""
    for each in node.body:
        if isinstance(each, _Function) and each.name == "__init__":
            names = [argument.arg for argument in each.args.args[1:]]
            return names.index("reason") if "reason" in names else None
    fields = [
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]
    return fields.index("reason") if "reason" in fields else None


class _Search:
    """One module."""

    def __init__(self, code: _Code, tree: ast.Module) -> None:
        self._code = code
        self._tree = tree
        for each in ast.walk(tree):
            if isinstance(each, _Function):
                code.functions[each.name].append((self, each))
        self._scope_of = {
            id(node): scope for scope in ast.walk(tree) if isinstance(scope, _Function) for node in ast.walk(scope)
        }

    def found(self) -> Iterator[str]:
        for node in ast.walk(self._tree):
            for value in self._sinks(node):
                yield from self._words(value, set())
            if isinstance(node, ast.ClassDef) and self._is_error(node.name) and not self._renames(node):
                yield node.name

    def _sinks(self, node: ast.AST) -> Iterator[ast.expr]:
        """The expressions whose value becomes a reason."""
        match node:
            case ast.Call(func=function, args=arguments, keywords=keywords):
                yield from (each.value for each in keywords if each.arg == "reason")
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                for position in self._code.positions.get(name, ()):
                    yield from _argument(arguments, position)
            case ast.Assign(targets=targets, value=value):
                yield from (right for left, right in _pairs(targets, value) if _named(left) == "reason")
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "reason":
                        yield value
            case ast.AnnAssign(target=target, value=ast.expr() as value) if _named(target) == "reason":
                yield value
            case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args):
                defaults = zip(reversed(args.args), reversed(args.defaults), strict=False)
                keyword = zip(args.kwonlyargs, args.kw_defaults, strict=True)
                yield from (d for a, d in (*defaults, *keyword) if a.arg == "reason" and d is not None)

    def _words(self, value: ast.expr, seen: set[str]) -> Iterator[str]:
        match value:
            case ast.Constant(value=str(text)) if _REASON.fullmatch(text):
                yield text
            case ast.IfExp(body=first, orelse=second):
                yield from self._words(first, seen)
                yield from self._words(second, seen)
            case ast.BoolOp(values=values):
                for each in values:
                    yield from self._words(each, seen)
            case ast.Dict(values=values):
                for each in values:
                    yield from self._words(each, seen)
            case ast.Name(id=name) if name not in seen:
                for each in self._assigned(value, name):
                    yield from self._words(each, seen | {name})
            case ast.Subscript(value=ast.Name() as table):
                yield from self._words(table, seen)
            case ast.Call(func=ast.Attribute(value=ast.Name() as table, attr="get"), args=[_, *default]):
                yield from self._words(table, seen)
                for each in default:
                    yield from self._words(each, seen)
            case ast.Call(func=ast.Name(id=name)) if name not in seen:
                yield from self._returned(name, None, seen)
            case ast.Subscript(value=ast.Call(func=ast.Name(id=name)), slice=ast.Constant(value=int(index))):
                if name not in seen:
                    yield from self._returned(name, index, seen)

    def _returned(self, function: str, index: int | None, seen: set[str]) -> Iterator[str]:
        """By the functions of this name: what they return, or one place of it."""
        for search, definition in self._code.functions[function]:
            for node in ast.walk(definition):
                value = node.value if isinstance(node, ast.Return) else None
                if index is not None:
                    places = value.elts if isinstance(value, ast.Tuple) else []
                    value = places[index] if index < len(places) else None
                if value is not None:
                    yield from search._words(value, seen | {function})

    def _assigned(self, at: ast.AST, name: str) -> Iterator[ast.expr]:
        """What `name` can be: as the function assigns it, else as the module does."""
        scope: ast.AST = self._scope_of.get(id(at), self._tree)
        local = [right for node in ast.walk(scope) for left, right in _assignments(node) if _named(left) == name]
        yield from local or [r for n in self._tree.body for left, r in _assignments(n) if _named(left) == name]

    def _is_error(self, name: str) -> bool:
        bases = self._code.bases.get(name, set())
        return _ROOT in bases or any(self._is_error(base) for base in bases - {name})

    def _renames(self, node: ast.ClassDef) -> bool:
        """Whether its `__init__` says the reason itself."""
        return any(
            isinstance(each, ast.keyword) and each.arg == "reason" and isinstance(each.value, ast.Constant)
            for each in ast.walk(node)
        )


def _assignments(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        yield from _pairs(node.targets, node.value)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value


def _argument(arguments: list[ast.expr], position: int) -> Iterator[ast.expr]:
    """The one at this position, also out of what a `*call(…)` before it, or there, returns."""
    for index, each in enumerate(arguments[: position + 1]):
        if isinstance(each, ast.Starred):
            yield ast.Subscript(each.value, ast.Constant(position - index), ast.Load())
            return
    if position < len(arguments):
        yield arguments[position]


def _pairs(targets: Iterable[ast.expr], value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    for target in targets:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            yield from zip(target.elts, value.elts, strict=True)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Call):
            for index, each in enumerate(target.elts):
                yield each, ast.copy_location(ast.Subscript(value, ast.Constant(index), ast.Load()), value)
        else:
            yield target, value


def _named(target: ast.expr) -> str:
    return target.id if isinstance(target, ast.Name) else getattr(target, "attr", "")


def main(wanted: list[str]) -> int:
    root = Path(__file__).parents[2]
    files = [path for package in ("actors", "coordinator") for path in (root / package).rglob("*.py")]
    found = {name: places for name, places in reasons(files, root).items() if not wanted or name in wanted}
    for name, places in sorted(found.items()):
        print(f"{name:24} {' '.join(sorted(places))}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
