"""Boards behind a labgrid coordinator: acquired for the run, reached over SSH, given back, switched off and on.

labgrid is used through its own command line, which speaks to the coordinator in ``LG_COORDINATOR`` or on this machine.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import LabError, did_you_mean
from edgekit.lab.shell import told
from edgekit.lab.transports.ssh import Ssh
from edgekit.types import Progress, silent

try:
    import yaml
except ImportError as error:
    raise LabError("the package pyyaml is not installed", "pip install 'edgekit[lab]'") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.lab.transport import Finished

_SECONDS = 60.0
_WAITING = 600.0
"""Seconds to wait for a place with given tags to become free."""
_NAME = re.compile(r"[\w.@-]+")
_TAGS = re.compile(r"[\w-]+=[\w.-]+(,[\w-]+=[\w.-]+)*")
_TOKEN = re.compile(r"LG_TOKEN=(\w+)")


def connect(name: str) -> Place:
    """Acquire a place, by its name or by tags (``arch=arm64,kind=board``: the first that is free), and connect to it.

    Raises:
        LabError: labgrid is missing, its coordinator does not answer, the place is unknown, used by someone else, or
            has no network service, or what its SSH refuses.
        LinkLost: the board does not answer.
    """
    if _TAGS.fullmatch(name):
        token = _reserve(name.split(","))
        try:
            return Place(f"place:{name}", f"+{token}", token)
        except BaseException:
            with suppress(LabError):
                _labgrid("cancel-reservation", token)
            raise
    known = _labgrid("places").split()
    if not _NAME.fullmatch(name) or name not in known:
        places = f"labgrid knows {', '.join(known)}" if known else "make one with `labgrid-client create`"
        raise LabError(f"place:{name} is unknown to labgrid", f"{did_you_mean(name, known)}{places}")
    return Place(f"place:{name}", name)


class Place:
    """A Transport to the board of a place, which is held until ``close``.

    Args:
        address: as the user wrote it.
        place: labgrid's name of it, or ``+`` and the token of a reservation.
        token: of the reservation to cancel at the end.
    """

    def __init__(self, address: str, place: str, token: str = "") -> None:
        self._place, self._token = place, token
        self._ours = _acquire(address, place)
        try:
            self._place, service = _service(address, place)
            options = {"port": service.get("port", 22), "username": service.get("username")}
            self._ssh = Ssh(address, service["address"], {key: value for key, value in options.items() if value})
        except BaseException:
            self._release()
            raise

    @property
    def address(self) -> str:
        """``place:NAME``."""
        return self._ssh.address

    @property
    def home(self) -> str:
        """As Ssh.home."""
        return self._ssh.home

    def run(self, command: str, give: bytes = b"", seconds: float | None = None) -> Finished:
        """As Transport.run."""
        return self._ssh.run(command, give, seconds)

    def stream(self, command: str) -> Iterator[bytes]:
        """As Transport.stream."""
        return self._ssh.stream(command)

    def put(self, source: Path, target: str, progress: Progress = silent) -> None:
        """As Transport.put."""
        self._ssh.put(source, target, progress)

    def get(self, source: str, target: Path) -> None:
        """As Transport.get."""
        self._ssh.get(source, target)

    def reconnect(self) -> None:
        """As Transport.reconnect."""
        self._ssh.reconnect()

    def cycle_power(self) -> None:
        """Switch the board off and on with the switch that labgrid has for it; then ``reconnect`` until it is up.

        Raises:
            LabError: the place has no power switch, or it fails.
        """
        _labgrid("-p", self._place, "power", "cycle")

    def close(self) -> None:
        """End the connection and give the place back."""
        self._ssh.close()
        self._release()

    def _release(self) -> None:
        if self._ours:
            self._ours = False
            with suppress(LabError):  # the coordinator is gone, and with it the lock
                _labgrid("-p", self._place, "release")
        if self._token:
            token, self._token = self._token, ""
            with suppress(LabError):
                _labgrid("cancel-reservation", token)


def _acquire(address: str, place: str) -> bool:
    """Acquire a place; False if this user already held it here, who then also gives it back."""
    try:
        _labgrid("-p", place, "acquire")
    except LabError as error:
        if "You have already acquired place" in error.message and " on " not in error.message:
            return False
        if found := re.search(r"already acquired by (\S+)\.", error.message):
            raise LabError(f"{address} is used by {found[1]}", "wait until it is free, or use another") from error
        if "no matching remote resource" in error.message:
            raise LabError(
                f"{address}: its board is not exported: {error.message}", "start labgrid-exporter where the board is"
            ) from error
        raise
    return True


def _service(address: str, place: str) -> tuple[str, dict[str, Any]]:
    """The place's name and the parameters of its NetworkService."""
    try:
        ((name, target),) = yaml.safe_load(_labgrid("-p", place, "env"))["targets"].items()
        (service,) = (r["NetworkService"] for r in target["resources"] if "NetworkService" in r)
        if not all(isinstance(service[key], str) for key in ("address", "username")):
            raise TypeError
        if not isinstance(service.get("port", 22), int):
            raise TypeError
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(
            f"{address} has not exactly one NetworkService, through which edgekit reaches boards",
            "export one with its address and username, and match it in the place",
        ) from error
    return name, service


def _reserve(tags: list[str]) -> str:
    """Reserve a place with tags, wait until it is free, and return the reservation's token."""
    found = _TOKEN.search(_labgrid("reserve", "--shell", *tags))
    if not found:
        raise LabError("labgrid made no reservation", "run `labgrid-client reserve` and read what it says")
    try:
        _labgrid("wait", found[1], seconds=_WAITING)
    except BaseException:
        with suppress(LabError):
            _labgrid("cancel-reservation", found[1])
        raise
    return found[1]


def _labgrid(*arguments: str, seconds: float = _SECONDS) -> str:
    """Run labgrid's client and return what it printed.

    Raises:
        LabError: it is not installed, or it says that something is wrong.
    """
    program = shutil.which("labgrid-client", path=str(Path(sys.executable).parent)) or shutil.which("labgrid-client")
    if not program:
        raise LabError("labgrid-client is not installed", "pip install 'edgekit[lab]'")
    try:
        done = subprocess.run((program, *arguments), capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise LabError(
            f"labgrid: `{' '.join(arguments)}` took longer than {seconds:g} s", "see `labgrid-client who`"
        ) from error
    if done.returncode:
        words = told((done.stderr.strip().splitlines() or ["it failed"])[-1].encode())
        if "connect to coordinator" in words:
            raise LabError("labgrid's coordinator does not answer", "start it, or set LG_COORDINATOR to HOST:PORT")
        raise LabError(f"labgrid: {words.rpartition('Error: ')[2]}", f"run `labgrid-client {' '.join(arguments)}`")
    return done.stdout
