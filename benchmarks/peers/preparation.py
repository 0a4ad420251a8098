"""What happens before the race: an environment for each contender, its conversion, its quality. All of it is kept.

WORK/env/NAME is an environment and WORK/models/NAME what a contender made of the reference; beside each lies a JSON
file that says how it was made, and what is made the same way is not made again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from hashlib import sha256
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.peers.contender import Place
from benchmarks.peers.session import ROOT, Logits, Refusal, Session, last_words
from benchmarks.spending import spend
from edgekit.host.processor import processor_class
from edgekit.measure import score

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.contender import Command, Contender
    from benchmarks.peers.records import Record
    from benchmarks.scoring import Yardstick
    from benchmarks.spending import Spent


def make_environment(contender: Contender, work: Path, *, here: bool) -> Place:
    """The contender's interpreter, installed unless it is there.

    Args:
        contender: whose.
        work: the benchmark's folder.
        here: take this interpreter where it has all that the contender imports.

    Raises:
        Refusal: it does not install.
    """
    folder = work / "env" / (contender.environment or "here")
    if not contender.environment or (here and all(find_spec(m.partition(".")[0]) for m in contender.imports)):
        folder.mkdir(parents=True, exist_ok=True)
        return Place(sys.executable, folder)
    place = Place(str(folder / "bin" / "python"), folder)
    commands = [[sys.executable, "-m", "venv", str(folder)], *contender.install(place)]
    note, told = folder / "installed.json", json.dumps(commands)
    if not (note.is_file() and note.read_text() == told):
        shutil.rmtree(folder, ignore_errors=True)
        _follow(commands, _log(work, f"install-{contender.environment}"))
        note.write_text(told)
    return place


def convert(contender: Contender, place: Place, reference: Path, work: Path) -> tuple[Path, Record]:
    """The contender's files and what they took: seconds of all steps, the highest peak of any, bytes of all files.

    Kept files tell what they took when they were made.

    Raises:
        Refusal: a step fails.
    """
    out = work / "models" / contender.name
    note = out.with_name(f"{out.name}.json")
    commands = contender.convert(place, reference, out)
    made = {"commands": commands, "reference": json.loads((reference / "reference.json").read_text())}
    kept = json.loads(note.read_text()) if note.is_file() else {}
    if not contender.changing and kept.get("made") == made and out.is_dir():
        return out, kept["conversion"]
    note.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    spent = _follow(commands, _log(work, f"convert-{contender.name}"))
    conversion = {
        "seconds": sum(s.seconds for s in spent),
        "rss_bytes": max(s.rss_bytes for s in spent),
        "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
    }
    note.write_text(json.dumps({"made": made, "conversion": conversion}, indent=1))
    return out, conversion


def measure_quality(
    contender: Contender, place: Place, folder: Path, yardstick: Yardstick, threads: int, work: Path
) -> Record:
    """The Quality of what ships, in the contender's own runtime, as a dict; kept for as long as no byte changes.

    Raises:
        Refusal: its process ended.
    """
    text, reference = yardstick.text, yardstick.reference
    key = sha256(f"{text.sha256} {reference.tokens.shape} {threads} {contender.imports}".encode())
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        key.update(file.relative_to(folder).as_posix().encode() + sha256(file.read_bytes()).digest())
    note = work / "quality" / f"{contender.name}-{key.hexdigest()[:16]}.json"
    if note.is_file():
        return dict(json.loads(note.read_text()))
    with Session(contender, place, folder, threads, _log(work, f"run-{contender.name}")) as session:
        quality = score(
            Logits(session, reference.vocab_size),
            reference,
            text=text.name,
            text_sha256=text.sha256,
            reference_name="off-grid",
            runtime=" ".join(f"{name} {number}" for name, number in session.ready["versions"].items()),
            accuracy_level=0,
            processor_class=processor_class(),
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asdict(quality)))
    return asdict(quality)


def open_session(contender: Contender, place: Place, folder: Path, threads: int, work: Path) -> Session:
    """A contender's process.

    Raises:
        Refusal: it does not open.
    """
    return Session(contender, place, folder, threads, _log(work, f"run-{contender.name}"))


def _log(work: Path, name: str) -> Path:
    (work / "log").mkdir(parents=True, exist_ok=True)
    return work / "log" / f"{name}.txt"


def _follow(commands: list[Command], log: Path) -> list[Spent]:
    log.unlink(missing_ok=True)
    spent = []
    for command in commands:
        try:
            spent.append(spend(command, log, ROOT))
        except (OSError, subprocess.CalledProcessError) as error:
            raise Refusal(f"{command[0]} does not start: {error}") from error
        if spent[-1].code:
            raise Refusal(f"`{' '.join(command[-6:])}` ended with {spent[-1].code}: {last_words(log)}")
    return spent
