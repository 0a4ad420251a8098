"""One file a tool; the folder is the registry. A file's module level needs the standard library alone."""

from importlib import import_module
from pkgutil import iter_modules

from benchmarks.peers.contender import Contender


def find_contenders() -> dict[str, Contender]:
    """Every contender by its name, edgekit's first."""
    files = sorted((m.name for m in iter_modules(__path__)), key=lambda name: (name != "edgekit", name))
    found = [c for name in files for c in import_module(f"{__name__}.{name}").CONTENDERS]
    return {contender.name: contender for contender in found}
