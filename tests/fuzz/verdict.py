"""One verdict on one case: done, refused with a hint, or failed in one of nine ways."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import mkdtemp
from typing import IO, TYPE_CHECKING, Any, Literal, Self, get_args

from tests.fuzz.seeds import SEEDS

if TYPE_CHECKING:
    from tests.fuzz.case import Case

ROOT = Path(__file__).parents[2]
SECONDS = 20.0
"""Of processor time that a case may take; six times as much by the clock, for a machine that others use."""
_TAIL = 20_000

Failure = Literal[
    "traceback", "hang", "memory", "crash", "no_hint", "wrote_outside", "wrongly_accepted", "half_made", "bad_json"
]
FAILURES: tuple[Failure, ...] = get_args(Failure)


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    ``traceback``: an error that is ours (exit code 2, or a traceback anywhere); ``hang``: out of time; ``memory``: more
    than 1 GB above the start; ``crash``: ended by a signal; ``no_hint``: a refusal that is not one ``error:`` line and
    one ``hint:`` line; ``wrote_outside``: changed what it may not; ``wrongly_accepted``: done, and should not be;
    ``half_made``: refused, and left something in ``out/``; ``bad_json``: --json, and stdout is not one document.
    """

    kind: Literal["done", "refused"] | Failure
    code: int
    seconds: float
    peak: int
    stdout: str
    stderr: str
    about: str = ""

    @property
    def failed(self) -> bool:
        """Whether edgekit has to be mended."""
        return self.kind in FAILURES

    @property
    def mark(self) -> str:
        """What failures of one cause have in common: the kind, and the last line of edgekit's in a traceback."""
        lines = re.findall(r'File "[^"]*/(edgekit/[^"]+)", line (\d+)', self.stderr)
        # A hang is told by faulthandler, whose latest call comes first.
        last = (
            ":".join(lines[0 if self.kind == "hang" else -1]) if lines else re.sub(r"\d+|'[^']*'", "#", self.about)[:80]
        )
        return f"{self.kind} {last}"


class Judge:
    """Runs cases one after another in children of a warm process. A context manager.

    Args:
        scratch: a folder of its own; by default one that is removed at the end.
        seconds: processor time of a case.
    """

    def __init__(self, scratch: Path | None = None, seconds: float = SECONDS) -> None:
        self._own = scratch is None
        self.scratch = (scratch or Path(mkdtemp(prefix="fuzz-"))).resolve()
        self._seconds = seconds
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        (self.scratch / "cache").mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            self._pipe("stdin").close()
            self._server.wait()
            self._pipe("stdout").close()
        if self._own:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def seed(self, name: str) -> Path:
        """The folder of a valid input; made when it is first asked for."""
        folder = self.scratch / "seeds" / name
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            SEEDS[name](folder)
        return folder

    def judge(self, case: Case) -> Verdict:
        """Arrange a case's files, run it, look at what it left."""
        folder, log = self.scratch / "case", self.scratch / "log"
        for old in (folder, log):
            _remove(old)
            old.mkdir()
        case.arrange(folder, self.seed)
        for name in (".home", ".tmp", "victim"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "victim" / "note.txt").write_text("not yours\n")
        stdin = ""
        if case.stdin is not None:
            stdin = str(log / "stdin")
            Path(stdin).write_bytes(case.stdin.encode("utf-8", "surrogateescape"))
        before = _snapshot(folder, case.writes)
        answer = self._ask({
            "folder": str(folder), "log": str(log), "stdin": stdin, "command": list(case.command),
            "environment": dict(case.environment) | {"HOME": str(folder / ".home"), "TMPDIR": str(folder / ".tmp")},
            "seconds": self._seconds, "writes": list(case.writes),
        })  # fmt: skip
        changed = sorted(before ^ _snapshot(folder, case.writes))
        outside = (log / "outside").read_text().splitlines() if (log / "outside").exists() else []
        left = [p.name for p in (folder / "out").iterdir()] if (folder / "out").is_dir() else []
        texts = [_tail(log / name) for name in ("stdout", "stderr")]
        return decide_case(case, answer, texts[0], texts[1], [*(c[0] for c in changed), *outside], left)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._server is None:
            self._server = self._start()
        self._pipe("stdin").write(json.dumps(request) + "\n")
        self._pipe("stdin").flush()
        line = self._pipe("stdout").readline()
        assert line, "the fork server ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _start(self) -> subprocess.Popen[str]:
        """The server, with a home of its own: no case sees the user's."""
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")}
        environment = kept | {
            "PYTHONPATH": str(ROOT), "HOME": str(home), "EDGEKIT_CACHE": str(self.scratch / "cache"),
            "MPLCONFIGDIR": str(self.scratch / "matplotlib"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.forking"], cwd=ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._server = server
        assert self._pipe("stdout").readline() == "{}\n", "the fork server did not start"
        return server

    def _pipe(self, which: Literal["stdin", "stdout"]) -> IO[str]:
        assert self._server
        pipe: IO[str] | None = getattr(self._server, which)
        assert pipe
        return pipe


def decide_case(
    case: Case, answer: dict[str, Any], stdout: str, stderr: str, changed: list[str], left: list[str]
) -> Verdict:
    status = answer["status"]
    code = os.waitstatus_to_exitcode(status)

    def verdict(kind: Any, about: str = "") -> Verdict:
        return Verdict(kind, code, answer["seconds"], answer["peak"], stdout, stderr, about)

    if answer["why"]:
        return verdict(answer["why"], f"{answer['seconds']:.0f} s, {answer['peak'] / 1e6:,.0f} MB")
    if code < 0:
        return verdict("crash", signal.Signals(-code).name)
    if code not in (0, 1, 3) or "Traceback (most recent call last)" in stderr + stdout:
        return verdict("traceback", (stderr.strip().splitlines() or [""])[-1] if code == 0 else _raised(stderr))
    if changed:
        return verdict("wrote_outside", ", ".join(changed[:5]))
    if "--json" in case.command and not _one_document(stdout):
        return verdict("bad_json", stdout[:200])
    if code == 0:
        return verdict("wrongly_accepted", case.name) if case.refused else verdict("done")
    words = [re.findall(rf"^{word}: *(.*)$", stderr, flags=re.MULTILINE) for word in ("error", "hint")]
    if any(len(found) != 1 or not found[0].strip() for found in words):
        return verdict("no_hint", stderr[-400:])
    if code == 1 and left:
        return verdict("half_made", ", ".join(left))
    return verdict("refused")


def _raised(stderr: str) -> str:
    """The error's own line of a traceback."""
    lines = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Warning|Interrupt|Exit)\b.*$", stderr, flags=re.MULTILINE)
    return lines[-1][:300] if lines else stderr.strip()[-300:]


def _one_document(stdout: str) -> bool:
    with suppress(ValueError):
        json.loads(stdout)
        return True
    return False


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    data = path.read_bytes()
    shown = data if len(data) < 1_000_000 else data[:_TAIL] + data[-_TAIL:]
    return shown.decode("utf-8", "replace")


def _snapshot(folder: Path, writes: tuple[str, ...]) -> set[tuple[str, int, int, int]]:
    """Name, size, time and kind of everything that a case may not change."""
    found = set()
    mine = ("out", ".tmp", ".home/.cache", ".home/.local", ".home/.config", *writes)

    def allowed(path: str) -> bool:
        return any(fnmatchcase(path, one) for one in mine)

    for root, folders, files in os.walk(folder):
        here = Path(root).relative_to(folder)
        folders[:] = [name for name in folders if not allowed((here / name).as_posix())]
        for name in (*folders, *files):
            if not allowed(path := (here / name).as_posix()):
                facts = os.lstat(folder / path)
                fixed = path != ".home" and not any(w.startswith(f"{path}/") for w in writes)
                found.add(
                    (path, facts.st_size if name in files else 0, facts.st_mtime_ns if fixed else 0, facts.st_mode)
                )
    return found


def _remove(path: Path) -> None:
    if path.exists():
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o700)  # noqa: PTH101 - os.walk has names
        shutil.rmtree(path)
