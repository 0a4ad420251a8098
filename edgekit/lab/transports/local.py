"""The machine that edgekit runs on, as if it were a device: to try a lab, and to measure a laptop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.host.cache import cache_folder
from edgekit.host.disk import writing
from edgekit.lab.shell import late
from edgekit.lab.transport import Finished
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 16


def connect(name: str) -> Local:
    """Connect to this machine.

    ``name`` is "", or a folder for the device's files, so that one machine can be several devices.

    Raises:
        LabError: the folder is relative.
    """
    if name and not Path(name).is_absolute():
        raise LabError(f"local:{name}: not an absolute folder", "write `local`, or local: and an absolute folder")
    return Local(f"local:{name}" if name else "local", Path(name) if name else cache_folder() / "device")


class Local:
    """A Transport to this machine: commands are processes in a session of their own."""

    def __init__(self, address: str, home: Path) -> None:
        self._address, self._home = address, home

    @property
    def address(self) -> str:
        """``local``."""
        return self._address

    @property
    def home(self) -> str:
        """Its folder."""
        return str(self._home)

    def run(self, command: str, give: bytes = b"", seconds: float | None = None) -> Finished:
        """As Transport.run."""
        process = self._start(command, subprocess.PIPE, subprocess.PIPE)
        try:
            out, err = process.communicate(give, seconds)
        except subprocess.TimeoutExpired:
            raise late(self._address, command, seconds) from None
        finally:
            _end(process)
        return Finished(process.returncode if process.returncode >= 0 else 128 - process.returncode, out, err)

    def stream(self, command: str) -> Iterator[bytes]:
        """As Transport.stream."""
        process = self._start(command, subprocess.DEVNULL, subprocess.DEVNULL)
        assert process.stdout
        try:
            while data := os.read(process.stdout.fileno(), _CHUNK):
                yield data
        finally:
            _end(process)
            process.stdout.close()

    def put(self, source: Path, target: str, progress: Progress = silent) -> None:
        """As Transport.put."""
        goal = Path(target)
        size = source.stat().st_size
        progress(goal.name, 0, size, "B")
        with writing(goal), tempfile.NamedTemporaryFile(dir=goal.parent, delete=False) as file:
            try:
                with source.open("rb") as given:
                    shutil.copyfileobj(given, file)
                Path(file.name).rename(goal)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        progress(goal.name, size, size, "B")

    def get(self, source: str, target: Path) -> None:
        """As Transport.get."""
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise LabError(f"{self._address}: {source} does not exist", "run `edgekit lab check` with it") from error

    def reconnect(self) -> None:
        """Nothing to do: this machine is here."""

    def close(self) -> None:
        """Nothing to do."""

    def _start(self, command: str, stdin: int, stderr: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ("/bin/sh", "-c", command), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children, which share its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
