"""Whether kills, writers at once and full disks break a bundle or lose anything.

    python -m benchmarks.strangers.kills [--points 100]

A tiny build, its replacement with ``--force`` and the recording of a measurement are killed at points spread over their
steps (see faults.py), and at random times; afterwards whoever opens the bundle must find the old one, the new one or,
where there was none, none; the same command must then give the same bytes and leave nothing beside them. Records of two
processes, builds side by side into one place, and disks that are full from any step on follow. ``broken``: a bundle
that does not open, or other bytes, or something half-made that is left, or an error without a hint. ``lost``: a bundle
or a record that was there, or should be.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.strangers.faults import Child, Fault, Outcome, perform
from edgekit import build_bundle
from edgekit.bundle import open_bundle, record
from edgekit.errors import BundleError
from edgekit.testing import tiny_checkpoint
from edgekit.types import Bundle, Settings, Tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

RECORDS = 50
"""What each of two recorders records."""

_SETTINGS = Settings(
    threads=1, spinning=False, pinned=False, prompt_graph="own", prefill_chunk=64, decode_graph_max_tokens=1
)


@dataclass
class Count:
    """How often something was tried, and how often it went wrong."""

    what: str
    tries: int = 0
    broken: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)

    def break_(self, note: str) -> None:
        """Something is broken."""
        self.broken += 1
        self.notes.append(f"broken: {note}")

    def lose(self, note: str) -> None:
        """Something is lost."""
        self.lost += 1
        self.notes.append(f"lost: {note}")


class Site:
    """A folder with a checkpoint, and the two bundles that come of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = tiny_checkpoint(folder / "checkpoint")
        self.old = tree(self.build(folder / "old", "int8").path)
        self.new = tree(self.build(folder / "new").path)

    def build(self, out: Path, precision: str = "int4", *, force: bool = False) -> Bundle:
        """The old bundle is int8, the new one int4."""
        return build_bundle(str(self.checkpoint), out=out, precision=precision, force=force)  # type: ignore[arg-type]

    @contextmanager
    def place(self) -> Iterator[Path]:
        """Where a bundle may be made: the only thing in a folder."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder) / "out"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tuning(machine: str) -> Tuning:
    """A record that is told from others by its machine."""
    return Tuning(machine, "1", _SETTINGS, kept=True, trials=(), left_out=(), waited=None, time="2026-01-01T00:00:00Z")


def spread(steps: int, points: int) -> Sequence[int]:
    """So many steps, evenly over all; each once where there are fewer."""
    return sorted({n * steps // points for n in range(points)})


def count_kills(points: int = 100, *, folder: Path | None = None) -> tuple[Count, ...]:
    """Everything that this program tries.

    Args:
        points: of kills in all; of full disks as many for a build, a replacement and a record each.
        folder: where; a temporary one by default.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        site = Site(Path(name).resolve())
        return (
            kill_builds(site, points * 3 // 10),
            kill_replacements(site, points * 4 // 10),
            kill_recorders(site, points - points * 3 // 10 - points * 4 // 10),
            record_at_once(site),
            build_side_by_side(site, max(1, points // 20)),
            fill_disks(site, points),
            fill_small_disks(site, max(4, points // 5)),
        )


def _faults(task: Callable[[], object], root: Path, points: int) -> Iterator[Fault | float]:
    """Two thirds by steps, one by time: steps are known beforehand, seconds are chance."""
    began = time.monotonic()
    steps = perform(task, root).steps
    took = time.monotonic() - began
    by_step = spread(steps, points - points // 3)
    yield from (Fault("kill", at) for at in by_step)
    chance = random.Random(0)
    yield from (chance.uniform(0, took) for _ in range(points - len(by_step)))


def _kill(task: Callable[[], object], root: Path, fault: Fault | float) -> Outcome:
    if isinstance(fault, Fault):
        return perform(task, root, fault)
    child = Child(task, root)
    time.sleep(fault)
    child.kill()
    return child.join()


def _opens(out: Path) -> dict[str, bytes] | None:
    """The bytes of a bundle that opens, and whose every hash is right; None where it does not open."""
    try:
        open_bundle(out)
    except BundleError:
        return None
    return {name: data for name, data in tree(out).items() if not name.startswith(".edgekit-")}


def _alone(count: Count, out: Path, when: str) -> None:
    beside = [p.name for p in out.parent.iterdir() if p != out]
    hidden = [p.name for p in out.iterdir() if p.name.startswith(".")] if out.is_dir() else []
    if beside or hidden:
        count.break_(f"{when}: left {beside + hidden}")


def _build_again(count: Count, site: Site, out: Path, fault: Fault | float) -> None:
    """The same command after a kill ends with the whole bundle, and nothing beside it."""
    again = perform(lambda: site.build(out, force=out.exists()), out.parent)
    if again.end != "done" or _opens(out) != site.new:
        count.break_(f"{fault}: building again: {again.end} {again.said}")
    _alone(count, out, f"{fault}, built again")


def kill_builds(site: Site, points: int) -> Count:
    """A build into an empty place."""
    count = Count("build killed")
    with site.place() as out:
        faults = list(_faults(lambda: site.build(out), out.parent, points))
    for fault in faults:
        with site.place() as out:
            count.tries += 1
            _kill(lambda out=out: site.build(out), out.parent, fault)
            if out.exists() and _opens(out) != site.new:
                count.break_(f"{fault}: what is there is not the bundle")
            _build_again(count, site, out, fault)
    return count


def kill_replacements(site: Site, points: int) -> Count:
    """``--force`` over a bundle."""
    count = Count("build --force killed")
    with site.place() as out:
        site.build(out, "int8")
        faults = list(_faults(lambda: site.build(out, force=True), out.parent, points))
    for fault in faults:
        with site.place() as out:
            count.tries += 1
            site.build(out, "int8")
            _kill(lambda out=out: site.build(out, force=True), out.parent, fault)
            found = _opens(out)
            if found is None:
                count.lose(f"{fault}: neither the old bundle nor the new one")
            elif found not in (site.old, site.new):
                count.break_(f"{fault}: what is there is neither bundle")
            _build_again(count, site, out, fault)
    return count


def kill_recorders(site: Site, points: int) -> Count:
    """A measurement that is recorded beside an older one."""
    count = Count("record killed")

    def second(out: Path) -> Bundle:
        return record(open_bundle(out), tuning=tuning("second"))

    with site.place() as out:
        record(site.build(out), tuning=tuning("first"))
        faults = list(_faults(lambda: second(out), out.parent, points))
    for fault in faults:
        with site.place() as out:
            count.tries += 1
            record(site.build(out), tuning=tuning("first"))
            _kill(lambda out=out: second(out), out.parent, fault)
            if _opens(out) is None:
                count.break_(f"{fault}: it does not open")
                continue
            if "first" not in _machines(out):
                count.lose(f"{fault}: the older record")
            again = perform(lambda out=out: second(out), out.parent)
            if again.end != "done" or _machines(out) != ["first", "second"]:
                count.lose(f"{fault}: recording again: {again.end} {again.said}, {_machines(out)}")
            _alone(count, out, f"{fault}, recorded again")
    return count


def _machines(out: Path) -> list[str]:
    return sorted(t.machine for t in open_bundle(out).manifest.tunings)


def record_at_once(site: Site) -> Count:
    """Two processes record different things, each in a bundle that it opened once."""
    count = Count("two recorders at once", tries=2 * RECORDS)

    def many(bundle: Bundle, word: str) -> None:
        for n in range(RECORDS):
            record(bundle, tuning=tuning(f"{word}{n}"))

    with site.place() as out:
        bundle = site.build(out)
        children = [Child(lambda word=word: many(bundle, word), out.parent) for word in "ab"]
        for child in children:
            outcome = child.join()
            if outcome.end != "done":
                count.break_(outcome.said)
        for name in {f"{word}{n}" for word in "ab" for n in range(RECORDS)} - set(_machines(out)):
            count.lose(name)
        _alone(count, out, "afterwards")
    return count


def build_side_by_side(site: Site, rounds: int) -> Count:
    """Four builds into one place, two of them with ``--force``, while others open the bundle and record in it."""
    count = Count("builds side by side")

    def read(out: Path) -> None:
        for _ in range(20):
            try:
                record(open_bundle(out), tuning=tuning("beside"))
            except BundleError as error:
                if not error.hint:
                    raise

    for _ in range(rounds):
        with site.place() as out:
            count.tries += 1
            site.build(out, "int8")
            tasks = [
                lambda out=out, p=p, f=f: site.build(out, p, force=f) for p in ("int4", "int8") for f in (True, False)
            ]
            children = [Child(task, out.parent) for task in (*tasks, lambda out=out: read(out))]
            outcomes = [child.join() for child in children]
            for outcome in outcomes:
                if outcome.end not in ("done", "refused"):
                    count.break_(outcome.said)
            if [o.end for o in outcomes[1:4:2]] != ["refused", "refused"]:
                count.lose("a bundle was replaced without --force")
            try:
                bundle = open_bundle(out)
            except BundleError as error:
                count.break_(error.message)
            else:
                files = {entry.path for entry in bundle.manifest.files}
                kept = {name: data for name, data in tree(out).items() if name in files}
                if not any(kept.items() <= known.items() for known in (site.old, site.new)):
                    count.break_("the bundle is a mixture")
            _alone(count, out, "afterwards")
    return count


def fill_disks(site: Site, points: int) -> Count:
    """From a step on, nothing more fits: a build, a replacement and a record."""
    count = Count("disk full from a step on")

    def replacement(out: Path) -> Bundle:
        return site.build(out, force=True)

    def recording(out: Path) -> Bundle:
        return record(open_bundle(out), tuning=tuning("second"))

    for task, before in ((site.build, None), (replacement, site.old), (recording, site.old)):
        with site.place() as out:
            if before:
                site.build(out, "int8")
            steps = perform(lambda out=out, task=task: task(out), out.parent).steps
        for at in spread(steps, points):
            with site.place() as out:
                count.tries += 1
                if before:
                    site.build(out, "int8")
                outcome = perform(lambda out=out, task=task: task(out), out.parent, Fault("full", at))
                _judge_full(count, f"{task.__name__}, step {at}", out, outcome, before, site)
    return count


def fill_small_disks(site: Site, sizes: int) -> Count:
    """The same on file systems that are too small, where one may be mounted: the kernel's own word for it."""
    count = Count("small disks")
    whole = sum(map(len, site.old.values())) + sum(map(len, site.new.values()))
    for n in range(sizes):
        with site.place() as out, _small_disk(out, 16384 + n * (whole + 65536) // sizes) as mounted:
            if not mounted:
                count.notes.append("not tried: no file system may be mounted here")
                return count
            count.tries += 1
            before = perform(lambda out=out: site.build(out, "int8"), out.parent)
            _judge_full(count, f"disk {n}, first", out, before, None, site, site.old)
            if before.end == "done":
                outcome = perform(lambda out=out: site.build(out, force=True), out.parent)
                _judge_full(count, f"disk {n}, replacement", out, outcome, site.old, site)
    return count


@contextmanager
def _small_disk(out: Path, size: int) -> Iterator[bool]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(out.parent)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(out.parent)], check=True)


def _judge_full(
    count: Count,
    when: str,
    out: Path,
    outcome: Outcome,
    before: dict[str, bytes] | None,
    site: Site,
    after: dict[str, bytes] | None = None,
) -> None:
    found = _opens(out) if out.exists() else None
    if outcome.end == "failed":
        count.break_(f"{when}: {outcome.said}")
    if found is None and (before is not None or out.exists()):
        count.lose(f"{when}: the bundle that was there")
    if found is not None and outcome.end == "refused" and _files(found) not in (_files(before or {}), _files(site.new)):
        count.break_(f"{when}: the bundle is another")
    if outcome.end == "done" and _files(found or {}) not in (_files(after or site.new), _files(site.old)):
        count.break_(f"{when}: done, and not what was to be made")
    _alone(count, out, when)


def _files(bundle: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in bundle.items() if name != "edgekit.json"}


def main(arguments: Sequence[str] = ()) -> bool:
    """Print the counts; True when nothing is broken or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100, help="points at which something is killed, or full")
    wanted = parser.parse_args(arguments)
    counts = count_kills(wanted.points)
    print(f"{'what':28} {'tries':>6} {'broken':>7} {'lost':>5}")
    for count in counts:
        print(f"{count.what:28} {count.tries:6} {count.broken:7} {count.lost:5}")
        for note in count.notes[:5]:
            print(f"    {note}")
    broken, lost = sum(c.broken for c in counts), sum(c.lost for c in counts)
    print(f"{'all':28} {sum(c.tries for c in counts):6} {broken:7} {lost:5}")
    return broken + lost == 0


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
