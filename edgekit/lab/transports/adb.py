"""Phones over adb: the server that the Android tools run too, by USB or Wi-Fi, without root."""

from __future__ import annotations

import struct
import threading
import time
from contextlib import closing, suppress
from shlex import quote
from typing import TYPE_CHECKING, BinaryIO

from edgekit.errors import LabError, LinkLost, did_you_mean
from edgekit.host.disk import scrap_name, writing
from edgekit.lab.shell import ask, ending, late, mark_of_its_own, marked, refusal, sized, storing, told
from edgekit.lab.transport import Finished
from edgekit.types import Progress, silent

try:
    import adbutils
except ImportError as error:
    raise LabError("the package adbutils is not installed", "pip install 'edgekit[lab]'") from error

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

HOME = "/data/local/tmp/edgekit"
"""Where adb's user may write and run programs on every Android."""

_PATIENCE = 20.0
_CHUNK = 1 << 16
_IN, _OUT, _ERR, _EXIT, _END_OF_IN = range(5)
"""Kinds of packets of adb's shell protocol: a byte, the length in four little-endian bytes, the data."""
_LOST = (OSError, EOFError, adbutils.AdbError)
_STATES = {
    "authorizing": "unlock the phone and allow USB debugging from this computer",
    "unauthorized": "unlock the phone and allow USB debugging from this computer",
    "no permissions": "add udev rules for it (the package android-sdk-platform-tools-common), then plug it in again",
    "recovery": "boot it into Android",
    "sideload": "boot it into Android",
    "bootloader": "boot it into Android",
}


def connect(name: str) -> Adb:
    """Connect to a phone: its serial number, ``HOST:PORT`` for Wi-Fi, or "" if there is only one.

    Raises:
        LabError: unknown, unauthorized, or too old; the hint says what to do.
        LinkLost: offline, or nothing answers at ``HOST:PORT``.
    """
    return Adb(name or _only_one())


class Adb:
    """A Transport through the adb server: a connection to it for every command."""

    home = HOME

    def __init__(self, serial: str) -> None:
        self.address = f"adb:{serial}"
        self._serial = serial
        self._running: set[str] = set()
        self.reconnect()
        try:
            features = self._device().get_features().split(",")
        except _LOST as error:
            raise self._lost(error) from error
        if "shell_v2" not in features:
            raise LabError(f"{self.address} does not report exit statuses", "use a phone with Android 7 or newer")

    def run(self, command: str, give: bytes = b"", seconds: float | None = None) -> Finished:
        """As Transport.run."""
        mark = mark_of_its_own()
        texts = {_OUT: bytearray(), _ERR: bytearray()}
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            with closing(self._shell(marked(command, mark))) as shell:
                writer = threading.Thread(target=_feed, args=(shell, give), daemon=True)
                writer.start()
                while True:
                    shell.settimeout(deadline and max(0.01, deadline - time.monotonic()))
                    kind, data = _packet(shell)
                    if kind == _EXIT:
                        return Finished(data[0], bytes(texts[_OUT]), bytes(texts[_ERR]))
                    if kind in texts:
                        texts[kind] += data
        except TimeoutError:
            self._end(mark)
            raise late(self.address, command, seconds) from None
        except _LOST as error:
            raise self._lost(error) from error

    def stream(self, command: str) -> Iterator[bytes]:
        """As Transport.stream."""
        mark = mark_of_its_own()
        ended = False
        self._running.add(mark)
        try:
            with closing(self._shell(marked(f"exec 2> /dev/null < /dev/null; {command}", mark))) as shell:
                while True:
                    kind, data = _packet(shell)
                    if kind == _EXIT:
                        ended = True
                        return
                    if kind == _OUT:
                        yield data
        except _LOST as error:
            ended = True
            raise self._lost(error) from error
        finally:
            if not ended and mark in self._running:
                self._end(mark)
            self._running.discard(mark)

    def put(self, source: Path, target: str, progress: Progress = silent) -> None:
        """As Transport.put."""
        size, part = source.stat().st_size, f"{target}.part"
        check = f"{sized(part, size)} && mv -f {quote(part)} {quote(target)}"
        with source.open("rb") as file:
            try:
                self._device().sync.push(_Watched(file, size, target.rpartition("/")[2], progress), part, 0o644)
            except _LOST as error:
                if not self._is_there():
                    raise self._lost(error) from error
        if self.run(check, b"", _PATIENCE).code:
            self._refuse(source, target, size)

    def _refuse(self, source: Path, target: str, size: int) -> None:
        """Let a shell there say why a file could not be written: adb does not."""
        self.run(f"rm -f {quote(target)}.part", b"", _PATIENCE)
        done = self.run(storing(target, size), source.read_bytes())
        if done.code:
            raise refusal(self.address, told(done.err) or f"{target} cannot be written")

    def get(self, source: str, target: Path) -> None:
        """As Transport.get."""
        ask(self, f"exec < {quote(source)}")  # says why not
        part = target.with_name(scrap_name())
        try:
            with writing(target), part.open("wb") as file:
                for data in self.stream(f"cat {quote(source)}"):
                    file.write(data)
                size = ask(self, f"wc -c < {quote(source)}").strip()
                if size != str(file.tell()):
                    raise LinkLost(f"{self.address}: {source} came cut off", "look at the cable, then try again")
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def reconnect(self) -> None:
        """As Transport.reconnect."""
        try:
            states = _states()
            if ":" in self._serial and states.get(self._serial) != "device":
                client = adbutils.AdbClient()
                if self._serial in states:
                    client.disconnect(self._serial)
                said = client.connect(self._serial, timeout=_PATIENCE)
                states = _states()
                if self._serial not in states:
                    raise LinkLost(
                        f"{self.address}: {told(said.encode())}",
                        "look whether the phone is in this network with wireless debugging on (`adb pair` comes first)",
                    )
        except _LOST as error:
            raise LinkLost(f"{self.address}: adb: {told(str(error).encode())}", "run `adb devices`") from error
        _require_ready(self._serial, states)

    def close(self) -> None:
        """As Transport.close."""
        with suppress(LabError):
            for mark in sorted(self._running):
                self._end(mark)
        self._running.clear()

    def _device(self) -> adbutils.AdbDevice:
        return adbutils.AdbClient().device(self._serial)

    def _shell(self, command: str) -> socket.socket:
        connection = self._device().open_transport()
        try:
            connection.send_command(f"shell,v2,raw:{command}")
            connection.check_okay()
            link: socket.socket = connection.conn
            link.settimeout(None)
            return link
        except BaseException:
            connection.close()
            raise

    def _end(self, mark: str) -> None:
        """End a command there: it does not end with the connection."""
        with suppress(LinkLost):
            self.run(ending(mark), b"", _PATIENCE)

    def _is_there(self) -> bool:
        try:
            return _states().get(self._serial) == "device"
        except _LOST:
            return False

    def _lost(self, error: Exception) -> LinkLost:
        words = told(str(error).encode()) or "the connection ended"
        return LinkLost(f"{self.address} was lost: {words}", "look at the cable or the Wi-Fi, and whether it is on")


class _Watched:
    """A file for adbutils that tells how far it was read."""

    def __init__(self, file: BinaryIO, size: int, name: str, progress: Progress) -> None:
        self._file, self._size, self._name, self._progress = file, size, name, progress

    def read(self, length: int) -> bytes:
        data = self._file.read(length)
        at = self._file.tell()
        if at % (1 << 20) < length or at == self._size:
            self._progress(self._name, at, self._size, "B")
        return data


def _states() -> dict[str, str]:
    """The devices that the server knows, with their states."""
    return {device.serial: device.state for device in adbutils.AdbClient().list()}


def _only_one() -> str:
    try:
        known = sorted(_states())
    except _LOST as error:
        raise LabError(f"adb: {told(str(error).encode())}", "run `adb devices`") from error
    if len(known) != 1:
        raise LabError(
            f"adb: {', '.join(known)}: which one?" if known else "adb: no phone is connected",
            "write adb:SERIAL" if known else "plug one in with USB debugging on, or write adb:HOST:PORT",
        )
    return known[0]


def _require_ready(serial: str, states: dict[str, str]) -> None:
    state = states.get(serial)
    if state is None:
        known = f"adb knows {', '.join(sorted(states))}" if states else "no phone is connected; plug it in"
        raise LinkLost(f"adb:{serial} is not there", f"{did_you_mean(serial, list(states))}{known}")
    if state == "offline":
        raise LinkLost(f"adb:{serial} is offline", "unplug it and plug it in again, or run `adb reconnect`")
    if state != "device":
        hint = next((fix for word, fix in _STATES.items() if state.startswith(word)), "run `adb devices`")
        raise LabError(f"adb:{serial}: {state}", hint)


def _packet(shell: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack("<BI", _exactly(shell, 5))
    return kind, _exactly(shell, length)


def _exactly(shell: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        more = shell.recv(min(length - len(data), _CHUNK))
        if not more:
            raise EOFError("the connection ended in the middle of a command")
        data += more
    return bytes(data)


def _feed(shell: socket.socket, give: bytes) -> None:
    with suppress(OSError):  # it ended without reading everything
        for at in range(0, len(give), _CHUNK):
            data = give[at : at + _CHUNK]
            shell.sendall(struct.pack("<BI", _IN, len(data)) + data)
        shell.sendall(struct.pack("<BI", _END_OF_IN, 0))
