"""``python -m benchmarks.strangers [inputs privacy ...]``: the named rows of the table, or all."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pkgutil import iter_modules

import benchmarks.strangers


def main() -> int:
    """Run the modules; exit code 1 where one does not hold."""
    names = sorted(m.name for m in iter_modules(benchmarks.strangers.__path__) if not m.name.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strangers", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[*names, []], metavar="ROW", help=", ".join(names))
    failed = []
    for name in parser.parse_args().rows or names:
        print(f"\n{name}", flush=True)
        if import_module(f"benchmarks.strangers.{name}").main() is False:
            failed.append(name)
    if failed:
        print(f"\ndoes not hold: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
