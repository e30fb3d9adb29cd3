"""The public names of a package, imported when they are asked for.

    from actors.doors import doors
    __getattr__ = doors(__name__, "agent", "settings")

Then `from actors.agent import NodeAgent` works, for scripts and in a console, and importing one module of a package
does not import all of them. Code of ours names the module, which checkers of types understand.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def doors(package: str, *modules: str) -> Callable[[str], Any]:
    """A `__getattr__` for `package`: the public names of its `modules`, the first that has one, as is `__all__`."""

    def attribute(name: str) -> Any:
        from importlib.util import find_spec  # milliseconds, which every start would take

        if name == "__all__":
            return sorted({each for module in modules for each in _public(f"{package}.{module}")})
        # `from package import module` asks here first: then the import system takes over.
        if not name.startswith("__") and find_spec(f"{package}.{name}") is None:
            for module in modules:
                found = import_module(f"{package}.{module}")
                if hasattr(found, name):
                    return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


def _public(module: str) -> list[str]:
    return [name for name in vars(import_module(module)) if not name.startswith("_")]
