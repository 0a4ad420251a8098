"""Two runs never share a device: a lease is a file on it, named by a token, that ends by the device's own uptime.

Whoever wants a lease first writes their file and then looks at all of them, and withdraws if another is still valid.
So of two who come at once, one at least sees the other: never do both hold the device, whoever is killed when.
"""

from __future__ import annotations

import getpass
import random
import socket
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from secrets import token_hex
from shlex import quote
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from edgekit.errors import LabError, LinkLost
from edgekit.lab.shell import BOOT, UPTIME, ask, ending, told

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgekit.lab.transport import Transport

_TRIES = 8
_held: WeakKeyDictionary[Transport, Lease] = WeakKeyDictionary()
"""What this process holds, for the jobs that renew it."""

# Prints nothing if the lease is ours, else "held SECONDS" and who holds it, or "met" another who wants it.
_TAKE = """umask 077; mkdir -p {folder} && cd {folder} || exit 1
{uptime}; {boot}
place() {{ printf '%s\\n' "$boot $((now + $1)) $2" {who} > .{token} && mv -f .{token} {token} || exit 1; }}
until=0; mine=; [ ! -f {token} ] || read -r mine until rest < {token}
[ "$mine" = "$boot" ] && [ "$until" -gt "$now" ] && {{ place {seconds} held; exit 0; }}
place 10 wanted
for other in *; do
  [ "$other" != {token} ] || continue
  theirs=; until=0; state=; {{ read -r theirs until state; read -r who; }} < "$other" || [ -n "$theirs" ] || continue
  if [ "$theirs" = "$boot" ] && [ "$until" -gt "$now" ]; then
    rm -f {token}; [ "$state" = held ] && echo "held $((until - now))" || echo met
    echo "$who"; exit 0
  fi
  rm -f "$other"
done
place {seconds} held"""


class InUse(LabError):
    """Another holds the device. Its lease ends by itself if it was killed."""


class Lease:
    """The right to use a device, for ``seconds`` from the last renewal. Following a job on it renews it too."""

    def __init__(self, transport: Transport, seconds: float) -> None:
        self._transport = transport
        self.seconds = max(1, round(seconds))
        self._token = token_hex(8)

    def renew(self) -> None:
        """Begin its time anew.

        Raises:
            LabError: it had ended, and another holds the device now.
        """
        if held := self._take():
            raise LabError(
                f"{self._transport.address}: the lease ended and {held} took the device",
                "run again when it is free, with a longer lease",
            )

    def acquire(self) -> None:
        """Take the device, and end what an earlier holder left running on it.

        Raises:
            InUse: another holds it.
        """
        if held := self._take():
            raise InUse(f"{self._transport.address} is used by {held}", "wait until it is free, or use another")
        ask(self._transport, f"{{ {ending(f'EDGEKIT_JOB={self._transport.home}/')}; }}")

    def release(self) -> None:
        """Give the device back."""
        ask(self._transport, f"rm -f {quote(f'{self._transport.home}/lease/{self._token}')}")

    def _take(self) -> str:
        """Returns "", or who else holds the device."""
        for _ in range(_TRIES):
            state, _, who = ask(self._transport, self._script()).partition("\n")
            if not state:
                return ""
            if state.startswith("held "):
                return f"{told(who.encode())}, for another {told(state[5:].encode())} s"
            time.sleep(random.uniform(0.05, 0.5))  # so that two who came at once do not meet again
        return f"{told(who.encode())}, who came at the same time"

    def _script(self) -> str:
        who = f"{getpass.getuser()}@{socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
        return _TAKE.format(
            folder=quote(f"{self._transport.home}/lease"),
            token=self._token,
            seconds=self.seconds,
            who=quote(who),
            uptime=UPTIME,
            boot=BOOT,
        )


def held_lease(transport: Transport) -> Lease | None:
    """The lease that this process holds by ``transport``."""
    return _held.get(transport)


@contextmanager
def lease(transport: Transport, seconds: float = 120.0) -> Iterator[Lease]:
    """Hold a device for the block.

    Args:
        transport: to the device.
        seconds: how long others keep away after the last renewal. Following a job renews, as does ``Lease.renew``.

    Raises:
        LabError: another holds it; the message says who, since when and for how long.
    """
    held = Lease(transport, seconds)
    held.acquire()
    _held[transport] = held
    try:
        yield held
    finally:
        _held.pop(transport, None)
        with suppress(LinkLost):  # it ends by itself
            held.release()
