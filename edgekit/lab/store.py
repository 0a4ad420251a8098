"""What a lab keeps: a folder per night with one JSON line a run, and a table of them in any database.

The lines are the record: a run counts from the moment its line is on disk. The table (SQLite in the same folder, or any
SQLAlchemy URL for a team) is filled from them and brought up to date whenever a lab starts, so a process may be killed
between the two.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.host.disk import add_line, read_lines, sync, try_lock, write_whole, writing
from edgekit.record import from_json, to_json
from edgekit.types.lab import LabRun

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from edgekit.lab.database import Database
    from edgekit.lab.plan import Plan

SHOWN = 14
"""Nights that are looked at; older ones stay where they are."""
RUNS, PLAN, DATABASE = "runs.jsonl", "plan.json", "lab.sqlite"
_NIGHT = re.compile(r"(?P<lab>.+)@(?P<time>\d{8}T\d{6})Z")


@dataclass(frozen=True)
class Planned:
    """``plan.json``: the ids of a night's runs, and the spread above which they are no result."""

    night: str
    most_spread: float
    ids: tuple[str, ...]


class Store:
    """The results of a lab in a folder. Use ``opened`` to write."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.behind = ""
        """Why the table lacks runs; the next start adds them."""
        self._folder, self._database = folder, database
        self._turn = Lock()

    def begin(self, lab: str, *, fresh: bool = False) -> str:
        """Return the night to go on with: the last one of the lab if it has runs left, else a new one."""
        nights = [night for night in nights_in(self._folder) if lab_of(night) == lab]
        if nights and not fresh and self._left(nights[-1]):
            return nights[-1]
        now = datetime.now(UTC)
        night = f"{lab}@{now:%Y%m%dT%H%M%S}Z"
        while night in nights:  # a second in which a night began and ended
            now = now.replace(microsecond=0).fromtimestamp(now.timestamp() + 1, UTC)
            night = f"{lab}@{now:%Y%m%dT%H%M%S}Z"
        return night

    def write_plan(self, plan: Plan) -> frozenset[str]:
        """Keep the plan of a night, and return the ids of its runs that are done."""
        folder = self._folder / plan.night
        with writing(folder, kind=LabError):
            folder.mkdir(exist_ok=True)
            planned = Planned(plan.night, plan.lab.limits.most_spread, tuple(run.id for run in plan.runs))
            write_whole(folder / PLAN, f"{to_json(planned)}\n".encode())
            sync(self._folder)
        self.catch_up()
        return self.done(plan.night)

    def catch_up(self) -> None:
        """Add to the table the runs that it lacks.

        Raises:
            LabError: the database cannot be read or written.
        """
        for night in nights_in(self._folder):
            there = self._database.ids(night)
            if len(there) < _count_lines(self._folder / night):
                self._database.add([run for run in self.night(night) if run.id not in there])

    def keep(self, run: LabRun) -> None:
        """Append a run; when this returns, it is on disk. Thread-safe.

        Raises:
            LabError: it cannot be written.
        """
        path = self._folder / run.lab / RUNS
        line = to_json(run)
        with self._turn, writing(path, len(line), LabError):
            add_line(path, line, mend=True)
            sync(path)
        with self._turn:
            try:
                self._database.add([run])
            except LabError as error:
                self.behind = error.message

    def done(self, night: str) -> frozenset[str]:
        """The ids of a night's runs that are done."""
        return frozenset(run.id for run in self.night(night))

    def night(self, night: str) -> list[LabRun]:
        """The runs of a night."""
        return read_night(self._folder / night)

    def runs(self) -> Iterator[LabRun]:
        """The runs of the last nights, the oldest first; none in a new folder."""
        for night in nights_in(self._folder)[-SHOWN:]:
            yield from read_night(self._folder / night)

    def _left(self, night: str) -> bool:
        planned = read_plan(self._folder / night)
        return bool(planned and set(planned.ids) - {run.id for run in read_night(self._folder / night)})


@contextmanager
def opened(folder: Path, url: str = "") -> Iterator[Store]:
    """Open the results of a lab to write; nobody else can meanwhile.

    Args:
        folder: made if missing.
        url: an SQLAlchemy URL; by default SQLite in the folder.

    Raises:
        LabError: another lab writes there, the folder cannot be written, or the database cannot be opened.
    """
    from edgekit.lab.database import Database

    with writing(folder, kind=LabError):
        folder.mkdir(parents=True, exist_ok=True)
        handle = try_lock(folder / ".lock")
    if handle is None:
        raise LabError(f"another lab writes to {folder}", "wait until it has ended, or pass another folder as `out`")
    database = None
    try:
        database = Database(url or f"sqlite:///{(folder / DATABASE).resolve()}")
        yield Store(folder, database)
    finally:
        if database:
            database.close()
        os.close(handle)


def nights_in(folder: Path) -> list[str]:
    """The nights in a folder of results, oldest first."""
    found = [f.name for f in folder.iterdir() if _NIGHT.fullmatch(f.name)] if folder.is_dir() else []
    return sorted(found, key=lambda night: night.rpartition("@")[2])


def read_plan(folder: Path) -> Planned | None:
    """The plan of a night, None if it has none that can be read."""
    try:
        return from_json(Planned, (folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def lab_of(night: str) -> str:
    """The name of a night's lab."""
    return night.rpartition("@")[0]


def read_folder(folder: Path) -> Iterator[LabRun]:
    """The runs of the last nights in a folder, the oldest first.

    Raises:
        LabError: there are none, or a line is damaged.
    """
    nights = nights_in(folder)
    if not nights:
        raise LabError(f"{folder} holds no results of a lab", "pass a folder that `edgekit lab run` wrote")
    for night in nights[-SHOWN:]:
        yield from read_night(folder / night)


def _count_lines(folder: Path) -> int:
    """Runs of a night, without reading them."""
    path = folder / RUNS
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


def read_night(folder: Path) -> list[LabRun]:
    """The runs of a night, each once. A last line that was cut off by a killed process is no run.

    Raises:
        LabError: a line is damaged.
    """
    path = folder / RUNS
    if not path.exists():
        return []
    with writing(path, kind=LabError):
        lines = read_lines(path).decode("utf-8", "replace").splitlines()
    runs: dict[str, LabRun] = {}
    for number, line in enumerate(lines, 1):
        runs.setdefault((run := parse_run(line, f"{path}:{number}")).id, run)
    return list(runs.values())


def parse_run(line: str, where: str) -> LabRun:
    """Read a run from its line, which may be a stranger's.

    Raises:
        LabError: it is damaged, or of a newer edgekit.
    """
    try:
        return from_json(LabRun, line)
    except ValueError as error:
        newer = isinstance(data := _schema(line), int) and data > SCHEMA
        hint = "upgrade edgekit" if newer else "remove the line, or the night's folder"
        raise LabError(f"{where}: not a run of a lab: {error}", hint) from error


SCHEMA = 1
"""Version of the line."""


def _schema(line: str) -> object:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data.get("schema") if isinstance(data, dict) else None


def durations(runs: Iterable[LabRun]) -> dict[tuple[str, str, str], float]:
    """Seconds that the last run of each device, bundle and workload took, of those that brought something back."""
    return {(r.device, r.bundle, r.workload): _seconds(r) for r in runs if r.status in ("done", "noisy", "throttled")}


def _seconds(run: LabRun) -> float:
    began, ended = datetime.fromisoformat(run.started), datetime.fromisoformat(run.ended)
    return max(1.0, (ended - began).total_seconds())
