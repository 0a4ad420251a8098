"""A device with the driver: bundles brought to it, tasks done on it, and the lines that come back."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager, suppress
from secrets import token_hex
from shlex import quote
from typing import TYPE_CHECKING, TypeVar

from edgekit.bundle.manifest import MANIFEST
from edgekit.errors import LabError
from edgekit.estimate.memory import RUNTIME_BYTES, held_bytes, workspace_bytes
from edgekit.estimate.needs import kv_bytes_per_position
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.host.disk import write_whole
from edgekit.lab.driver.archive import driver_archive, driver_name
from edgekit.lab.driver.kept import Item, file_of, keep
from edgekit.lab.driver.python import Python, find_python
from edgekit.lab.driver.system import push_system
from edgekit.lab.driver.wheels import find_wheels
from edgekit.lab.facts import require_room
from edgekit.lab.job import start
from edgekit.lab.shell import ask, ending, marked, told
from edgekit.record import from_json, to_json
from edgekit.types import Progress, silent
from edgekit.types.lab import LINES, Done, Failed, Line, Sample, Task

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from edgekit.lab.transport import Transport
    from edgekit.types import Bundle

T = TypeVar("T")

LONGEST = 64 << 20
"""Most bytes of a line: a measurement has at most some hundred thousand samples."""

_LINE = re.compile(r'\{"([a-z]+)":(.*)\}', re.DOTALL)
_SAMPLE = (
    "import time; from edgekit.measure.conditions import Observer; from edgekit.record import to_json;"
    " seen = Observer(); time.sleep(0.5); print(to_json(seen.read()))"
)
_REPORT = "report this, with the bundle and the device"


class Device:
    """A device whose Python was found. Its lease should be held."""

    def __init__(self, transport: Transport, python: Python, progress: Progress = silent) -> None:
        """Args: as ``open_device``; the driver and its wheels come with the first bundle."""
        self.transport, self.python = transport, python
        self._progress = progress
        self._own = (_driver(), _site(python, transport.address, progress))
        self._folders: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """As the user writes it."""
        return self.transport.address

    def bring(self, bundle: Bundle, context: int, *, small_memory: bool = False) -> str:
        """Bring a bundle, and the driver, unless they are there; return the bundle's folder on the device.

        Args:
            bundle: the opened bundle; its CPU graphs are pushed.
            context: tokens that the next run holds.
            small_memory: the next run's.

        Raises:
            LabError: too little memory or storage there, which is found out before anything is pushed.
            BundleError: a file is not what the manifest says.
        """
        require_room(self.transport, 0, needed_memory(bundle, context, small_memory=small_memory))
        item = _bundle(bundle)
        self._folders = keep(self.transport, (*self._own, item), self.python, self._progress)
        return self._folders[-1]

    def lines(self, task: Task, *, pace: float = 1.0) -> Generator[Line]:
        """Do a task, yielding what the driver prints, up to Done. Closing the iterator ends it on the device.

        Args:
            task: its ``bundle`` is a folder on the device, as ``bring`` returned it.
            pace: as in Job.lines.

        Raises:
            LabError: the driver failed, with its message; or it was ended, or prints what it should not.
            LinkLost: as in Job.lines.
        """
        folder = f"{self.transport.home}/runs/{token_hex(8)}"
        try:
            with start(self.transport, self._command("in"), folder, to_json(task).encode()) as job:
                done = False
                for data in job.lines(pace):
                    line = read_line(self.address, data)
                    if isinstance(line, Failed):
                        raise LabError(f"{self.address}: {line.message}", line.hint)
                    done = isinstance(line, Done)
                    yield line
                if not done:
                    raise self._broken(job.code or 0, job.errors)
        finally:
            self._forget(folder)

    def sample(self) -> Sample:
        """Its state now.

        Raises:
            LabError: it cannot be read.
        """
        return self.ask(Sample, _SAMPLE)

    def ask(self, kind: type[T], program: str) -> T:
        """Run a line of Python with the driver's modules, and read the one dataclass that it prints.

        Raises:
            LabError: it fails there, or prints something else.
        """
        if not self._folders:
            self._folders = keep(self.transport, self._own, self.python, self._progress)
        command = f"{self._environment()} {self.python.command} -c {quote(program)}"
        try:
            return from_json(kind, ask(self.transport, f"cd {quote(self._folders[0])} && {command}"))
        except ValueError as error:
            raise LabError(f"{self.address}: its state cannot be read: {error}", _REPORT) from error

    def frames(self, task: Task, given: Sequence[Sequence[int]]) -> Generator[bytes]:
        """Do a ``logits`` task for lists of token ids, yielding its output as it comes.

        Raises:
            LabError: the driver broke off.
            LinkLost: the link did; what still runs there is ended by ``end_all``.
        """
        folder = f"{self.transport.home}/runs/{token_hex(8)}"
        lines = "".join(f"{json.dumps(list(ids))}\n" for ids in given).encode()
        mark = f"EDGEKIT_JOB={folder}:"
        try:
            ask(self.transport, f"umask 077; mkdir -p {quote(folder)} && cd {quote(folder)} && cat > in", lines)
            ask(self.transport, f"cd {quote(folder)} && cat > task", to_json(task).encode())
            command = f"cd {quote(folder)} && {self._command('task')} < in 2> err"
            yield from self.transport.stream(marked(command, mark))
            errors = ask(self.transport, f"tail -c 4000 {quote(folder)}/err")
            if errors.strip():
                raise self._broken(1, errors)
        finally:
            with suppress(LabError):
                ask(self.transport, f"{{ {ending(mark)}; }}")
            self._forget(folder)

    def end_all(self) -> None:
        """End whatever an earlier link left running there."""
        ask(self.transport, f"{{ {ending(f'EDGEKIT_JOB={self.transport.home}/')}; }}")

    def _command(self, task: str) -> str:
        driver = self._folders[0]
        return f"exec {self._environment()} {self.python.command} {quote(driver)} {quote(task)} {driver_name()[:16]}"

    def _environment(self) -> str:
        cache = f"{self.transport.home}/cache"
        return f"env EDGEKIT_CACHE={quote(cache)} PYTHONPATH={quote(self._folders[1])} PYTHONNOUSERSITE=1"

    def _broken(self, code: int, errors: str) -> LabError:
        said = errors.strip().splitlines()
        last = f": {told(said[-1].encode())}" if said else ""
        return LabError(f"{self.address}: the driver ended with status {code} before it was done{last}", _REPORT)

    def _forget(self, folder: str) -> None:
        with suppress(LabError):  # the answer is here; what is left there is small
            ask(self.transport, f"rm -rf {quote(folder)}")


@contextmanager
def open_device(transport: Transport, progress: Progress = silent) -> Iterator[Device]:
    """Find a device's Python, and the driver and wheels for it. Nothing is pushed yet but a Python for a phone.

    Raises:
        LabError: no Python that is new enough, or no wheels for it.
    """
    yield Device(transport, find_python(transport) or push_system(transport, progress), progress)


def read_line(address: str, data: bytes) -> Line:
    """A line of the driver's, checked.

    Raises:
        LabError: it is not one of ``types/lab.py``.
    """
    problem = "longer than any line of the driver"
    if len(data) <= LONGEST:
        found = _LINE.fullmatch(data.decode(errors="replace").strip())
        problem = f"{told(data[:80])!r} is no line of the driver"
        if found and found[1] in LINES:
            try:
                return from_json(LINES[found[1]], found[2])
            except ValueError as error:
                problem = str(error)
    raise LabError(f"{address}: it printed what cannot be read: {problem}", _REPORT)


def needed_memory(bundle: Bundle, context: int, *, small_memory: bool = False) -> int:
    """Estimated bytes in RAM of the driver with a bundle and ``context`` tokens."""
    manifest = bundle.manifest
    spec = manifest.spec
    prompts = (
        0 if small_memory or not manifest.prefill else sum(e.rows * e.columns for e in manifest.prefill.expansions)
    )
    cache = kv_bytes_per_position(spec) * context * (1 if manifest.cpu_target.shared_kv else 2)
    held = held_bytes(manifest.tensors, tied=spec.tied)
    return held + prompts + cache + workspace_bytes(spec, context) + RUNTIME_BYTES


def _driver() -> Item:
    path = require_own(cache_folder() / "drivers" / f"{driver_name()}.zip")
    if not path.is_file() or path.stat().st_size != len(driver_archive()):
        make_own(path.parent)
        write_whole(path, driver_archive())
    return Item("driver", (file_of("driver.zip", path, driver_name()),), unpack="zip")


def _site(python: Python, address: str, progress: Progress) -> Item:
    return Item(
        "site", tuple(file_of(path.name, path) for path in find_wheels(python, address, progress)), unpack="zip"
    )


def _bundle(bundle: Bundle) -> Item:
    """The parts of a bundle that its CPU graphs are run from."""
    manifest = bundle.manifest
    wanted = {manifest.graph, f"{manifest.graph}_data", *((manifest.prefill.graph,) if manifest.prefill else ())}
    files = tuple(file_of(f.path, bundle.path / f.path, f.sha256) for f in manifest.files if f.path in wanted)
    return Item("bundle", (file_of(MANIFEST, bundle.path / MANIFEST), *files))
