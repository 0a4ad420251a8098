"""The driver: the modules of edgekit that ``program.py`` needs, in a zip that ``python driver.zip TASK.json`` runs.

What it needs is read from the imports, those inside functions too. A package's ``__init__`` goes along only where names
are taken from the package itself; elsewhere an empty one keeps the rest of the package, and its libraries, away. The
same sources make the same bytes, whose hash is the driver's name.
"""

from __future__ import annotations

import ast
import zipfile
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import edgekit
from edgekit.config.providers import targets_folder
from edgekit.lab.driver import program

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOTS = (program.__name__,)

FOUND_BY_FOLDER = ("edgekit.measure.power",)
"""Packages whose modules are listed at run time."""

DATA = ("run/probes/*",)
"""Files beside modules, relative to the package."""

OLDEST = (3, 11)
"""The oldest Python that runs it."""

_MAIN = f"""import sys

if sys.version_info < {OLDEST}:
    sys.exit("the driver needs Python {".".join(map(str, OLDEST))} or newer, not " + sys.version.split()[0])

from {program.__name__} import main

sys.exit(main(*sys.argv[1:]))
"""
_MIDNIGHT = (1980, 1, 1, 0, 0, 0)
_PACKAGE = Path(edgekit.__file__).parent


@cache
def driver_archive() -> bytes:
    """The driver's zip. Nothing in it is compressed, since compressors differ."""
    content = BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in sorted(_files().items()):
            entry = zipfile.ZipInfo(name, _MIDNIGHT)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return content.getvalue()


@cache
def driver_name() -> str:
    """The sha256 of the driver's zip."""
    return sha256(driver_archive()).hexdigest()


def _files() -> dict[str, bytes]:
    """The files of the archive by name."""
    whole, parents = needed_modules()
    files = {_place(module).relative_to(_PACKAGE.parent).as_posix(): _place(module).read_bytes() for module in whole}
    for parent in parents - whole:
        files[f"{parent.replace('.', '/')}/__init__.py"] = b""
    for pattern in DATA:
        for path in _PACKAGE.glob(pattern):
            files[path.relative_to(_PACKAGE.parent).as_posix()] = path.read_bytes()
    for file in (targets_folder() / "providers").iterdir():
        files[f"edgekit/targets/providers/{file.name}"] = file.read_bytes()
    return files | {"__main__.py": _MAIN.encode()}


def needed_modules() -> tuple[set[str], set[str]]:
    """The modules and packages that ROOTS need with their content, and all packages above them."""
    waiting = [*ROOTS, *(name for package in FOUND_BY_FOLDER for name in _modules_in(package))]
    whole: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module not in whole:
            whole.add(module)
            waiting += _imports(_place(module))
    parents = {module.rsplit(".", n)[0] for module in whole for n in range(1, module.count(".") + 1)}
    return whole, parents


def _modules_in(package: str) -> Iterator[str]:
    for path in sorted(_place(package).parent.glob("*.py")):
        yield package if path.stem == "__init__" else f"{package}.{path.stem}"


def _imports(path: Path) -> Iterator[str]:
    """The modules of edgekit that a file imports when it is run."""
    for node in _running(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "edgekit")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "edgekit":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _is_module(inner) else node.module


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, except those that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _running(child)


def _is_module(name: str) -> bool:
    return _place(name).is_file()


def _place(module: str) -> Path:
    """The file of a module or a package."""
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
