"""``make mutate``: change one thing in the code at a time, and see whether a test notices.

    python -m tests.mutation --minutes 20 route estimate

Mutants are drawn at random from the modules of ``rooms.py`` until the time is up, in copies of the repository. One that
no test notices is printed as a diff: it wants a test, or it changes nothing that anyone could see. docs/mutation.md has
the score of the last run that was kept.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from difflib import unified_diff
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING

from tests.mutation.rooms import ROOMS, ROOT

if TYPE_CHECKING:
    from cosmic_ray.work_item import MutationSpec

COPIED = ("edgekit", "targets", "tests", "pyproject.toml")
LOADED = (
    "hypothesis",
    "pytest",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "pydantic",
    "scipy.special",
    "scipy.stats",
    "tokenizers",
)
"""What most tests import and nobody changes: loaded once, and there in the process of every mutant, which is a fork."""

SLOWEST = 120.0
"""Seconds after which a mutant that is still running counts as noticed: most of these never end."""


def main() -> int:
    """Draw mutants until the time is up and print what became of them; 0 where all were noticed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the order in which mutants are drawn")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("rooms", nargs="*", choices=[*ROOMS, []], help="by default all")
    chosen = parser.parse_args()
    rooms = chosen.rooms or list(ROOMS)
    drawn = [(room, tests, spec) for room in rooms for tests, spec in mutants(room)]
    random.Random(chosen.seed).shuffle(drawn)
    counts: Counter[tuple[str, bool]] = Counter()
    with TemporaryDirectory() as folder, ProcessPoolExecutor(chosen.jobs, initializer=move, initargs=(folder,)) as pool:
        if said := pool.submit(
            fail, " ".join(sorted({path for _, tests, _ in drawn for path in tests.split()}))
        ).result():
            print(f"{said}\nthe tests must pass before anything is changed")
            return 1
        end = monotonic() + 60 * chosen.minutes
        running = {pool.submit(judge, spec, tests, end): room for room, tests, spec in drawn}
        for future in as_completed(running):
            if (result := future.result()) is not None:
                counts[running[future], bool(result)] += 1
                print(result, end="", flush=True)
    return tell(rooms, counts, len(drawn))


def tell(rooms: list[str], counts: Counter[tuple[str, bool]], possible: int) -> int:
    """Print the score of each room; 1 where a mutant lived."""
    print(f"\n{sum(counts.values())} of {possible} mutants were tried")
    for room in rooms:
        noticed, lived = counts[room, False], counts[room, True]
        if noticed or lived:
            print(f"{room:10} {noticed + lived:5} mutants {noticed:5} noticed {noticed / (noticed + lived):7.1%}")
    return int(any(lived for _, lived in counts))


def mutants(room: str) -> list[tuple[str, MutationSpec]]:
    """Every mutant of a room with the tests that are to notice it; not those of annotations, which nothing executes."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    paths = {Path("edgekit") / module: tests for module, tests in ROOMS[room].items()}
    with TemporaryDirectory() as folder, use_db(Path(folder) / "mutants.sqlite", WorkDB.Mode.create) as database:
        init(paths, database, {})
        specs = [spec for item in database.work_items for spec in item.mutations]
    return [(paths[s.module_path], s) for s in specs if s.start_pos not in annotations(ROOT / s.module_path)]


@cache
def annotations(path: Path) -> frozenset[tuple[int, int]]:
    """Places (line, column) inside annotations of a module."""
    places: set[tuple[int, int]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for noted in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(noted, ast.expr) and noted.end_lineno is not None and noted.end_col_offset is not None:
                lines = range(noted.lineno, noted.end_lineno + 1)
                places |= {(line, column) for line in lines for column in range(200) if inside(noted, line, column)}
    return frozenset(places)


def inside(node: ast.expr, line: int, column: int) -> bool:
    """Whether a place is within an expression."""
    return (node.lineno, node.col_offset) <= (line, column) < (node.end_lineno or 0, node.end_col_offset or 0)


def move(folder: str) -> None:
    """Give this process a copy of the repository, in which it changes files."""
    copy = Path(folder) / str(os.getpid())
    copy.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.path[0], sys.dont_write_bytecode = str(copy), True
    for name in LOADED:
        import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]


def fail(tests: str, seconds: float | None = None) -> str:
    """What the tests say where one fails or they take longer than ``seconds``; "" where they pass."""
    process = get_context("fork").Process(target=run, args=(tests,))
    process.start()
    process.join(seconds)
    if process.is_alive() and process.pid:
        os.killpg(process.pid, SIGKILL)
        process.join()
    said = Path("said").read_text(encoding="utf-8", errors="replace")
    return f"{said[-3000:]}\nended with {process.exitcode}" if process.exitcode else ""


def run(tests: str) -> None:
    """Run some tests in a process group of their own, up to the first that fails; what they say goes to a file."""
    import pytest

    os.setsid()
    with Path("said").open("wb") as said:
        for stream in (1, 2):
            os.dup2(said.fileno(), stream)
    os._exit(pytest.main(["--assert=plain", "-x", "-q", "-m", "not model and not qnn", *tests.split()]))


def judge(spec: MutationSpec, tests: str, end: float) -> str | None:
    """Run the tests on one mutant: its diff where they pass, "" where they notice; None where the time is up."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    if monotonic() > end:
        return None
    operator = get_operator(spec.operator_name)(**spec.operator_args)
    with use_mutation(spec.module_path, operator, spec.occurrence) as (before, after):
        if after is None or fail(tests, SLOWEST):
            return ""
    lines = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(unified_diff(*lines, str(spec.module_path), str(spec.module_path)))


if __name__ == "__main__":
    sys.exit(main())
