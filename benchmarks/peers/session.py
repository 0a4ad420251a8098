"""The near end of a contender's process: start it, ask it, know what else the processor was doing meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from types import TracebackType

    from benchmarks.peers.contender import Contender, Place

ROOT = Path(__file__).parents[2]
CONTEXT = 704
"""Tokens of context that every contender is opened for: 512 of prompt and 129 of answer, and some room."""
_TICK = os.sysconf("SC_CLK_TCK")


class Refusal(Exception):
    """A contender cannot take part; the message is the reason that its row shows."""


@dataclass(frozen=True)
class Busy:
    """Seconds of processor time: of the whole machine, and of one process and this one."""

    machine: float
    ours: float
    at: float

    @classmethod
    def now(cls, pid: int) -> Busy:
        """Read /proc; see proc(5)."""
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        ours = sum(os.times()[:2])
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ours += (int(fields[11]) + int(fields[12])) / _TICK
        return cls((user + nice + system + irq + softirq + steal) / _TICK, ours, time.monotonic())

    def foreign(self, before: Busy) -> float:
        """Processor cores that others used since ``before``, on average."""
        others = (self.machine - before.machine) - (self.ours - before.ours)
        return max(0.0, others / max(self.at - before.at, 1e-9))


class Session:
    """A contender held open in a process of its own, for as long as the ``with`` lasts."""

    def __init__(self, contender: Contender, place: Place, folder: Path, threads: int, log: Path) -> None:
        command = [place.python, "-m", "benchmarks.peers.driver", contender.name, str(folder), str(threads)]
        switches = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": str(threads)}
        self._log = log
        self._at = log.stat().st_size if log.exists() else 0
        with log.open("a") as file:
            self._process = subprocess.Popen(
                [*command, str(CONTEXT)],
                cwd=ROOT,
                env={**os.environ, **switches},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        try:
            self.ready = self._answer()
        except Refusal:
            self._end()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def settle(self, patience: float) -> None:
        """Wait until other processes are quiet (a tenth of a core), for at most ``patience`` seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            before = Busy.now(self._process.pid)
            time.sleep(0.4)
            if Busy.now(self._process.pid).foreign(before) < 0.1:
                return

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """One question, one answer, and ``foreign_cores`` while it was worked on.

        Raises:
            Refusal: the process ended.
        """
        before = Busy.now(self._process.pid)
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            answer = self._answer()
        except BrokenPipeError as error:
            raise Refusal(self._reason()) from error
        return {**answer, "foreign_cores": round(Busy.now(self._process.pid).foreign(before), 3)}

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise Refusal(self._reason())
        return json.loads(line)

    def _reason(self) -> str:
        self._process.wait()
        return f"its process ended with {self._process.returncode}: {last_words(self._log, self._at)}"

    def _end(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Logits:
    """A session as what scores logits: see edgekit.measure.score."""

    def __init__(self, session: Session, vocab_size: int) -> None:
        self._session = session
        self.vocab_size = vocab_size

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Logits [S,V], through a file: they are 100 MB."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            self._session.ask({"tokens": tokens, "out": str(out)})
            return np.load(out)


def last_words(log: Path, start: int = 0) -> str:
    """The last line of a log that names an error, or else the last one at all."""
    with log.open(errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.strip()]
    named = [line for line in lines if "rror" in line.partition(":")[0]]
    return (named or lines or ["no word of why"])[-1][:300]
