"""One run as JSON lines, one a sample, and what is derived from them. Nothing here measures.

Every line has ``run`` (when it began), ``what``, ``contender``, ``title`` and ``environment``. By ``what``:

    refused     reason: the contender is a row without numbers
    conversion  seconds, rss_bytes, bytes
    quality     quality: edgekit's Quality
    start       round, position, import_seconds, load_seconds, and peak_rss_bytes after ``context`` tokens: one process
    speed       round, position, workload (pp512, tg128@512, tg128@32), tokens, seconds, foreign_cores
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Record = dict[str, Any]


@dataclass(frozen=True)
class Spread:
    """A median and the range that it comes from."""

    middle: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values), len(values))


class Run:
    """The records of one run, asked for by contender."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    @property
    def titles(self) -> dict[str, str]:
        """Every contender's title, in the order of their first appearance."""
        return {r["contender"]: r["title"] for r in self.records}

    @property
    def workloads(self) -> list[str]:
        """What speed was measured on, in order."""
        return list(dict.fromkeys(r["workload"] for r in self._of("speed")))

    def refusal(self, contender: str) -> str | None:
        """Why a contender did not take part."""
        return next((r["reason"] for r in self._of("refused", contender)), None)

    def conversion(self, contender: str) -> Record | None:
        """What its conversion took."""
        return next(self._of("conversion", contender), None)

    def quality(self, contender: str) -> Record | None:
        """Its Quality as a dict."""
        return next((r["quality"] for r in self._of("quality", contender)), None)

    def starts(self, contender: str, key: str) -> Spread | None:
        """A number of its processes: load_seconds, peak_rss_bytes ..."""
        values = [r[key] for r in self._of("start", contender)]
        return Spread.of(values) if values else None

    def speed(self, contender: str, workload: str) -> Spread | None:
        """Tokens per second."""
        values = list(self._by_round(contender, workload).values())
        return Spread.of(values) if values else None

    def ratio(self, contender: str, other: str, workload: str) -> Spread | None:
        """How many times as fast as another, taken inside each round that has both."""
        ours, theirs = self._by_round(contender, workload), self._by_round(other, workload)
        values = [ours[i] / theirs[i] for i in ours if i in theirs]
        return Spread.of(values) if values else None

    def foreign_cores(self) -> Spread | None:
        """Processor cores that others used during the samples."""
        values = [r["foreign_cores"] for r in self._of("speed")]
        return Spread.of(values) if values else None

    def _of(self, what: str, contender: str | None = None) -> Any:
        return (r for r in self.records if r["what"] == what and contender in (None, r["contender"]))

    def _by_round(self, contender: str, workload: str) -> dict[int, float]:
        return {
            r["round"]: r["tokens"] / r["seconds"] for r in self._of("speed", contender) if r["workload"] == workload
        }


def append_records(path: Path, records: list[Record]) -> None:
    """Add lines to a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def read_runs(path: Path) -> list[Run]:
    """The runs of a results file, the latest last."""
    runs: dict[str, list[Record]] = defaultdict(list)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        runs[record["run"]].append(record)
    return [Run(records) for _, records in sorted(runs.items())]
