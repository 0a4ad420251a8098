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
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import TYPE_CHECKING

from tests.mutation.rooms import ROOMS, ROOT

if TYPE_CHECKING:
    from cosmic_ray.work_item import MutationSpec, WorkResult

COPIED = ("edgekit", "targets", "tests", "pyproject.toml")
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
    counts: Counter[tuple[str, str]] = Counter()
    with TemporaryDirectory() as folder, ProcessPoolExecutor(chosen.jobs, initializer=move, initargs=(folder,)) as pool:
        if said := pool.submit(fail, sorted({path for _, tests, _ in drawn for path in tests.split()})).result():
            print(f"{said}\nthe tests must pass before anything is changed")
            return 1
        end = monotonic() + 60 * chosen.minutes
        running = {pool.submit(judge, spec, tests, end): room for room, tests, spec in drawn}
        for future in as_completed(running):
            if (result := future.result()) is not None:
                outcome = str(result.test_outcome.value) if result.test_outcome else "not run"
                counts[running[future], outcome] += 1
                if outcome == "survived":
                    print(result.diff, flush=True)
    return tell(rooms, counts, len(drawn))


def tell(rooms: list[str], counts: Counter[tuple[str, str]], possible: int) -> int:
    """Print the score of each room; 1 where a mutant lived."""
    print(f"\n{sum(counts.values())} of {possible} mutants were tried")
    for room in rooms:
        tried = sum(n for (name, _), n in counts.items() if name == room)
        lived = counts[room, "survived"]
        if tried:
            print(f"{room:10} {tried:5} mutants {tried - lived:5} noticed {1 - lived / tried:7.1%}")
    return int(any(outcome == "survived" for _, outcome in counts))


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


def pytest(tests: str) -> str:
    """The command that runs some tests and stops at the first that fails."""
    return f"{sys.executable} -m pytest -x -q -m 'not model and not qnn' {tests}"


def fail(tests: list[str]) -> str:
    """What the tests say on the code as it is; "" where they pass."""
    done = subprocess.run(shlex.split(pytest(" ".join(tests))), capture_output=True, text=True, check=False)
    return done.stdout[-3000:] if done.returncode else ""


def judge(spec: MutationSpec, tests: str, end: float) -> WorkResult | None:
    """Run the tests on one mutant; None where the time is up."""
    from cosmic_ray.mutating import mutate_and_test

    if monotonic() > end:
        return None
    return mutate_and_test([spec], pytest(tests), SLOWEST)


if __name__ == "__main__":
    sys.exit(main())
