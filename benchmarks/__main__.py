"""The list of benchmarks, or one of them.

python -m benchmarks                 what there is: what each measures, what it needs, how long it takes
python -m benchmarks quick           the one to begin with: a minute, no root, nothing to install
python -m benchmarks NAME [FLAGS]    the same as python -m benchmarks.NAME; --help says its flags
"""

from __future__ import annotations

import runpy
import sys
import textwrap

from benchmarks.catalogue import Benchmark, benchmarks

WIDTH = 100


def described(each: Benchmark) -> str:
    """A paragraph. Below it `!`, without which it cannot run here, and `-`, without which it leaves something out."""
    lines = textwrap.wrap(each.measures, WIDTH, initial_indent="  ", subsequent_indent="  ")
    said = f"  needs {', '.join(each.needs) or 'nothing else'}; takes {each.takes}"
    if each.better_with:
        said += f"; measures more with {', '.join(each.better_with)}"
    lines += textwrap.wrap(said, WIDTH, subsequent_indent="    ")
    lines += [f"  ! {line}" for line in each.missing]
    lines += [f"  - {line}" for line in each.left_out]
    return "\n".join([each.name, *lines])


def main(arguments: list[str]) -> int:
    found = {each.name: each for each in benchmarks()}
    if not arguments:
        print("\n\n".join(described(each) for each in found.values()))
        print("\npython -m benchmarks NAME --help says what can be chosen; `quick` is the one to begin with.")
        return 0
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name not in found:
        print(f"benchmarks: there is no {name!r}: there is {', '.join(found)}", file=sys.stderr)
        return 2
    sys.argv = [f"python -m benchmarks {name}", *rest]
    runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
