"""Boards and machines over SSH, with the user's own configuration, known hosts, keys, agent and jump hosts."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, TypeVar

from edgekit.errors import LabError, LinkLost
from edgekit.host.disk import scrap_name, writing
from edgekit.lab.shell import ask, ending, late, mark_of_its_own, marked, refusal, storing, told
from edgekit.lab.transport import Finished
from edgekit.types import Progress, silent

try:
    import asyncssh
except ImportError as error:
    raise LabError("the package asyncssh is not installed", "pip install 'edgekit[lab]'") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

_T = TypeVar("_T")
_CHUNK = 1 << 18
_PATIENCE = 20.0
"""Seconds to connect."""
_OPTIONS = {
    "connect_timeout": _PATIENCE,
    "login_timeout": _PATIENCE,
    "keepalive_interval": 10,
    "keepalive_count_max": 3,
}
"""A link is lost when the other side did not answer three times in 30 s."""
_NAME = re.compile(r"(?:([^@\s]+)@)?(?:\[([0-9a-fA-F:.%]+)\]|([^:@\s\[\]]+))(?::(\d{1,5}))?")


def connect(name: str) -> Ssh:
    """Connect to ``[USER@]HOST[:PORT]``, where HOST may be a name from the user's ssh configuration.

    Raises:
        LabError: an unknown or changed host key, or no permission; the hint says what to do.
        LinkLost: nothing answers there.
    """
    found = _NAME.fullmatch(name)
    if not found or name.startswith("-"):
        raise LabError(f"ssh:{name} is no host", "write ssh:USER@HOST, or ssh: and a name from ~/.ssh/config")
    user, six, host, port = found.groups()
    options = {"username": user, "port": int(port) if port else None}
    return Ssh(f"ssh:{name}", six or host, {key: value for key, value in options.items() if value is not None})


class Ssh:
    """A Transport over one SSH connection, whose event loop runs in a thread of its own.

    Args:
        address: of the device, for messages.
        host: to connect to.
        options: asyncssh's ``username`` and ``port``, where the user's ssh configuration should not choose.
    """

    def __init__(self, address: str, host: str, options: dict[str, Any]) -> None:
        self._address, self._host, self._options = address, host, options
        self._connection: asyncssh.SSHClientConnection | None = None
        self._running: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=address, daemon=True)
        self._thread.start()
        try:
            self.reconnect()
            self._home = ask(self, _HOME).strip()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """``ssh:pi@board``."""
        return self._address

    @property
    def home(self) -> str:
        """A folder in the user's cache there."""
        return self._home

    def run(self, command: str, give: bytes = b"", seconds: float | None = None) -> Finished:
        """As Transport.run."""
        mark = mark_of_its_own()
        try:
            return self._wait(self._run(marked(command, mark), give, seconds))
        except TimeoutError:
            self._end(mark)
            raise late(self._address, command, seconds) from None

    def stream(self, command: str) -> Iterator[bytes]:
        """As Transport.stream."""
        mark = mark_of_its_own()
        process = self._wait(self._open(marked(command, mark), stderr=asyncssh.DEVNULL))
        self._running.add(mark)
        try:
            while data := self._wait(process.stdout.read(_CHUNK)):
                yield data
            self._wait(_finish(process))
            self._running.discard(mark)
        except LinkLost:
            self._running.discard(mark)
            raise
        finally:
            if mark in self._running:
                self._running.discard(mark)
                self._end(mark)

    def put(self, source: Path, target: str, progress: Progress = silent) -> None:
        """As Transport.put. Needs no SFTP there, and a device that refuses says why."""
        size = source.stat().st_size
        command = marked(storing(target, size), mark_of_its_own())
        done = self._wait(self._send(command, source, partial(progress, target.rpartition("/")[2]), size))
        if done.code:
            raise refusal(self._address, told(done.err) or f"{target} cannot be written")

    def get(self, source: str, target: Path) -> None:
        """As Transport.get."""
        part = target.with_name(scrap_name())
        try:
            with writing(target), part.open("wb") as file:
                done = self._wait(self._receive(marked(f"cat < {quote(source)}", mark_of_its_own()), file.write))
                if done.code:
                    raise refusal(self._address, told(done.err))
                part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def reconnect(self) -> None:
        """As Transport.reconnect."""
        if self._connection:
            self._connection.abort()
        self._connection = self._wait(self._connect())

    def close(self) -> None:
        """As Transport.close."""
        if self._loop.is_closed():
            return
        with suppress(LabError):
            for mark in sorted(self._running):
                self._end(mark)
            if self._connection:
                self._wait(_close(self._connection))
        self._running.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _end(self, mark: str) -> None:
        """End a command of ours there: it does not end with the connection."""
        with suppress(LinkLost, TimeoutError):
            self._wait(self._run(marked(ending(mark), "EDGEKIT_END=1"), b"", _PATIENCE))

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for what happens in the other thread."""
        if self._loop.is_closed():
            work.close()
            raise LinkLost(f"{self._address}: the connection was closed", "connect again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except TimeoutError:
            raise
        except (asyncssh.Error, asyncio.IncompleteReadError, OSError) as error:
            raise self._explain(error) from error
        except BaseException:
            future.cancel()
            raise

    def _explain(self, error: Exception) -> LabError:
        if isinstance(error, asyncssh.ChannelOpenError) and self._connection and not self._connection.is_closed():
            return LabError(f"{self._address} opens no further session: {error}", "end other sessions there, try again")
        return LinkLost(f"{self._address} was lost: {told(str(error).encode())}", "look at its power and its network")

    async def _connect(self) -> asyncssh.SSHClientConnection:
        options = None
        try:
            async with asyncio.timeout(2 * _PATIENCE):
                options = await asyncssh.SSHClientConnectionOptions.construct(
                    host=self._host, config=(), **_OPTIONS, **self._options
                )
                if options.known_hosts is None:
                    raise LabError(
                        f"{self._address}: your ssh configuration has no file of known hosts to check keys with",
                        "remove UserKnownHostsFile from it for this host",
                    )
                return await asyncssh.connect(self._host, options=options)
        except asyncssh.HostKeyNotVerifiable as error:
            raise _untrusted(self._address, self._host, error, options) from error
        except asyncssh.PermissionDenied as error:
            user = f" for {options.username}" if options else ""
            raise LabError(
                f"{self._address}: permission denied{user}",
                f"add your key with `ssh-copy-id` or load it with `ssh-add`, until `ssh {self._host}` asks nothing",
            ) from error
        except socket.gaierror as error:
            raise LinkLost(f"{self._address}: no host of this name is known", "correct the name, or add it") from error
        except TimeoutError as error:
            raise LinkLost(f"{self._address} does not answer", "look at its power, its network and the port") from error
        except (asyncssh.Error, OSError) as error:
            words = told(str(error).encode())
            raise LinkLost(f"{self._address}: {words}", "look at its power, its network and the port") from error
        except ValueError as error:  # its configuration, or a key file
            words = told(str(error).encode())
            raise LabError(f"{self._address}: your ssh configuration: {words}", "correct it in ~/.ssh") from error

    async def _open(self, command: str, **streams: Any) -> asyncssh.SSHClientProcess[bytes]:
        if not self._connection:
            raise LinkLost(f"{self._address} is not connected", "connect again")
        return await self._connection.create_process(command, encoding=None, **streams)

    async def _run(self, command: str, give: bytes, seconds: float | None) -> Finished:
        async with asyncio.timeout(seconds):
            process = await self._open(command, stdin=asyncssh.PIPE if give else asyncssh.DEVNULL)
            out, err = await process.communicate(give or None)
            return Finished(await _finish(process), out or b"", err or b"")

    async def _send(self, command: str, source: Path, progress: Callable[[int, int, str], None], size: int) -> Finished:
        process = await self._open(command, stdout=asyncssh.DEVNULL)
        sent = 0
        with source.open("rb") as file, suppress(BrokenPipeError, ConnectionResetError):  # it says why itself
            while data := file.read(_CHUNK):
                process.stdin.write(data)
                await process.stdin.drain()
                sent += len(data)
                progress(sent, size, "B")
            process.stdin.write_eof()
        err = await process.stderr.read()
        return Finished(await _finish(process), b"", err)

    async def _receive(self, command: str, write: Callable[[bytes], object]) -> Finished:
        process = await self._open(command, stdin=asyncssh.DEVNULL)
        while data := await process.stdout.read(_CHUNK):
            write(data)
        err = await process.stderr.read()
        return Finished(await _finish(process), b"", err)


_HOME = 'echo "${XDG_CACHE_HOME:-${HOME:-/tmp/$(id -un)}/.cache}/edgekit/device"'


async def _finish(process: asyncssh.SSHClientProcess[bytes]) -> int:
    """The exit status of a process that has ended; it is lost with the link."""
    await process.wait_closed()
    code: int | None = process.returncode
    if code is None:
        raise asyncssh.ConnectionLost("the connection ended in the middle of a command")
    return code if code >= 0 else 128 - code


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    connection.close()
    with suppress(TimeoutError):
        await asyncio.wait_for(connection.wait_closed(), _PATIENCE)


def _untrusted(address: str, given: str, error: Exception, options: Any) -> LabError:
    """The error of a host key that is not the known one, or of a host without a known one."""
    host = str(error).rpartition(" for host ")[2]
    name, _, alias = host.partition(" with alias ")
    own = Path("~/.ssh/known_hosts").expanduser()
    files = options.known_hosts or ([str(own)] if own.is_file() else b"")
    if asyncssh.match_known_hosts(files, alias or name, "", options.port)[0]:
        entry = name if options.port == 22 or alias else f"'[{name}]:{options.port}'"
        return LabError(
            f"{address}: the key of {host} is another than the known one: a new system there, or someone in between",
            f"find out which; if it is a new system, `ssh-keygen -R {entry}`, then `ssh {given}` once",
        )
    return LabError(
        f"{address}: the key of {host} is not known",
        f"log in once with `ssh {given}` and compare the fingerprint that it shows",
    )
