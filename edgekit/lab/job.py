"""Jobs that run detached on a device: a lost link is found again, and what they print is neither lost nor doubled.

A job's folder on the device: ``command``, ``in``, ``out``, ``err``, ``pid`` (of its supervisor), ``boot``, ``code``
(its exit status, once it ended, and what else ended it), ``alive`` (written by the host). Every process of a job has
its folder in its environment, by which they are found. If the host stops writing ``alive``, the job is ended on the
device. ``code`` and ``alive`` are written over without giving up their block, so that a full disk does not matter.
"""

from __future__ import annotations

import signal
import time
from secrets import token_hex
from shlex import quote
from typing import TYPE_CHECKING, TypeVar

from edgekit.errors import LabError, LinkLost
from edgekit.lab.lease import held_lease
from edgekit.lab.shell import BOOT, UPTIME, ask, ending, refusal, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from edgekit.lab.transport import Transport

_T = TypeVar("_T")

PATIENCE = 120.0
"""Seconds without a host after which a device ends a job, and for which a host looks for a lost device."""

_AT_ONCE = 15
"""Seconds that one look at the output may last: after that the host says again that it is there."""
_ENDING = 2.0
"""Seconds that a device may take to note how a job ended."""
_ERRORS = 1 << 16
_KILLED = 128 + signal.SIGKILL
_REBOOTED = "look at its power supply and its heat (`edgekit lab check`), then run again"

_SUPERVISE = """cd {folder} || exit 1
echo $$ > pid.part && mv pid.part pid
killed() {{ grep '^oom_kill ' /proc/vmstat 2>/dev/null; }}
before=$(killed)
sh ./command < in > out 2> err &
job=$!
(
  still=0; last=
  while sleep {tick}; do
    now=; read -r now < alive
    if [ "$now" = "$last" ]; then still=$((still + {tick})); else still=0; last=$now; fi
    if [ $still -ge {patience} ]; then echo {killed} host 1<> code.part; exec sh ./finish; fi
  done
) < /dev/null > /dev/null 2>&1 &
wait $job
code=$?
why=; [ $code -ne {killed} ] || [ "$before" = "$(killed)" ] || why=memory
echo $code $why 1<> code.part
exec sh ./finish"""

_FINISH = """{end}
mv code.part code"""

# What was cut off while it was sent is not started; a second attempt starts nothing twice.
_START = """umask 077; mkdir -p {parent} && mkdir {folder} 2>/dev/null; cd {folder} || exit 1
[ -f id ] || echo {token} > id; read -r id < id
[ "$id" = {token} ] || {{ echo 'the folder of the job is in use' >&2; exit 1; }}
cat > in.$$ && [ $(wc -c < in.$$) = {size} ] || {{ rm -f in.$$; echo 'No space left on device' >&2; exit 1; }}
if mkdir started 2>/dev/null; then
  mv in.$$ in && printf %s {command} > command && printf %s {supervise} > supervise || exit 1
  printf %s {finish} > finish && {boot} && echo "$boot" > boot && : > out && : > err || exit 1
  echo 0 > alive && echo > code.part || exit 1
  env {mark} setsid sh ./supervise < /dev/null > /dev/null 2>&1 &
fi
rm -f in.$$
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  [ -f pid ] && exit 0
  sleep 0.1 2>/dev/null || sleep 1
done
echo 'the job did not start' >&2; exit 1"""

# `-nt` is the shell's own, so nothing is started on the device while nothing is printed. Some shells compare seconds.
_FOLLOW = """cd {folder} || exit 1
echo {beat} 1<> alive
read -r pid < pid; exec 3< out; : > seen; tail -c +{next} <&3
{uptime}; stop=$((now + {at_once})); wait={pace}
while :; do
  done=; [ -f code ] && done=yes
  if [ -n "$done" ] || [ out -nt seen ]; then : > seen; cat <&3; wait={pace}
  else case $wait in 0.5|1) cat <&3;; esac; fi
  {uptime}
  [ -z "$done" ] && [ "$now" -lt "$stop" ] && [ -d /proc/"$pid" ] || break
  sleep $wait 2>/dev/null || sleep 1
  case $wait in 0.05) wait=0.1;; 0.1) wait=0.2;; 0.2) wait=0.5;; *) wait=1;; esac
done"""

_STATE = """{boot}; echo "now $boot"
cd {folder} 2>/dev/null || exit 0
[ -f boot ] && read -r boot < boot; echo "boot $boot"
read -r pid < pid && grep -qF {mark} /proc/"$pid"/environ 2>/dev/null && echo "alive yes"
[ -f code ] && read -r code why < code && echo "code $code" && echo "why $why"
echo size $(wc -c < out)
echo "free $(stat -f -c %a . 2>/dev/null)\""""


class Job:
    """A command that runs detached on a device. Made by ``start``; as a context, it is ended at the block's end."""

    def __init__(self, transport: Transport, folder: str, patience: float) -> None:
        self._transport, self._folder, self._patience = transport, folder, patience
        self._offset = self._beat = 0
        self.code: int | None = None
        """Its exit status, 128 + the signal if one ended it; None while it runs."""
        self.errors = ""
        """The end of its stderr, at most 64 KiB; once it has ended."""

    def __enter__(self) -> Job:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.end()
        except LinkLost:  # it ends by itself, without a host
            if error is None:
                raise

    def lines(self, pace: float = 0.05) -> Iterator[bytes]:
        """Yield the lines that it prints to stdout, without newlines, until it ends; then ``code`` is known.

        Take them without long pauses: a job whose host is silent for its ``patience`` is ended.

        Args:
            pace: seconds between looks at the output at first, of 0.05, 0.1, 0.2, 0.5 and 1; longer ones follow while
                nothing is printed. A measurement takes 1, which costs the device nothing.

        Raises:
            LabError: something else ended it: a signal, too little memory, a reboot, a full disk.
            LinkLost: the device was not found again in ``patience`` seconds.
        """
        rest = b""
        while self.code is None:
            for data in self._look(pace):
                *whole, rest = (rest + data).split(b"\n")
                yield from whole
        if rest:
            yield rest

    def end(self) -> None:
        """End it and all its children on the device, if it still runs.

        Raises:
            LinkLost: the device cannot be reached; the job ends by itself after its patience.
        """
        if self.code is not None:
            return
        self._again(lambda: ask(self._transport, f"{{ {ending(_mark(self._folder))}; }}"))
        state = self._again(self._state)
        self.code = _number(state.get("code", "")) if "code" in state else _KILLED
        self.errors = self._again(self._read_errors)

    def _look(self, pace: float) -> Iterator[bytes]:
        """Yield what is new. Sets ``code`` when the job has ended and all was yielded."""
        self._beat += 1
        lease = held_lease(self._transport)
        longest = min(_AT_ONCE, self._patience / 4, lease.seconds / 4 if lease else _AT_ONCE)
        script = _FOLLOW.format(
            folder=quote(self._folder),
            beat=self._beat,
            next=self._offset + 1,
            pace=pace,
            at_once=max(1, int(longest)),
            uptime=UPTIME,
        )
        try:
            for data in self._transport.stream(script):
                self._offset += len(data)
                yield data
        except LinkLost as lost:
            self._find(lost)
        if lease:
            self._again(lease.renew)
        state = self._again(self._state)
        self._require_same_boot(state)
        if "code" not in state and "alive" not in state:
            time.sleep(_ENDING)
            state = self._again(self._state)
        if "code" in state:
            if _number(state.get("size", "")) <= self._offset:
                self._finish(state)
        elif "alive" not in state:
            raise LabError(
                f"{self._transport.address}: the job was ended there by something else than edgekit",
                "look for what ends background processes on the device, then run again",
            )

    def _finish(self, state: dict[str, str]) -> None:
        code, why = _number(state["code"]), state.get("why", "")
        self.errors = self._again(self._read_errors)
        self.code = code
        address, end = self._transport.address, told(self.errors.encode())
        if why == "host":
            raise LabError(
                f"{address}: the job was ended there, since its host was silent for {self._patience:g} s",
                "look at the connection, then run again",
            )
        if why == "memory":
            raise LabError(
                f"{address}: the system killed the job: it ran out of memory",
                "end other programs there, or use a smaller bundle or less context",
            )
        if code and state.get("free") == "0":
            raise refusal(address, f"No space left on the device: {end or 'the job failed'}")
        if code > 128:
            raise LabError(
                f"{address}: the job was killed by {_signal(code - 128)}{': ' if end else ''}{end}",
                "see who ended it; a phone short of memory ends background processes, so end other apps",
            )

    def _require_same_boot(self, state: dict[str, str]) -> None:
        if state.get("now") != state.get("boot"):
            self.code = _KILLED
            raise LabError(f"{self._transport.address} was rebooted in the middle of the run", _REBOOTED)

    def _state(self) -> dict[str, str]:
        script = _STATE.format(boot=BOOT, folder=quote(self._folder), mark=quote(_mark(self._folder)))
        pairs = (line.partition(" ") for line in ask(self._transport, script).splitlines())
        return {key: value for key, _, value in pairs}

    def _read_errors(self) -> str:
        done = self._transport.run(f"tail -c {_ERRORS} {quote(f'{self._folder}/err')}", b"", 60.0)
        return done.out.decode(errors="replace")

    def _again(self, act: Callable[[], _T]) -> _T:
        """Do what may be repeated, on a new link where the old one is lost."""
        while True:
            try:
                return act()
            except LinkLost as lost:
                self._find(lost)

    def _find(self, lost: LinkLost) -> None:
        find(self._transport, lost, self._patience)


def find(transport: Transport, lost: LinkLost, patience: float = PATIENCE) -> None:
    """Connect again to a device that was lost.

    Raises:
        LinkLost: it did not come back in ``patience`` seconds.
    """
    deadline, pause = time.monotonic() + patience, 0.1
    while True:
        try:
            transport.reconnect()
            return
        except LinkLost:
            if time.monotonic() + pause > deadline:
                raise LinkLost(
                    f"{lost.message}; it did not come back in {patience:g} s",
                    "look at its power and its network, then run again",
                ) from lost
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def start(transport: Transport, command: str, folder: str, give: bytes = b"", patience: float = PATIENCE) -> Job:
    """Start a line of ``sh`` detached on a device.

    Args:
        transport: to the device; its lease should be held.
        command: the line; its working folder is ``folder``.
        folder: a new folder on the device for the job's files: ``<home>/runs/<id>``.
        give: bytes for its stdin.
        patience: seconds without a host after which the device ends it, and for which a lost device is looked for.

    Raises:
        LabError: the device refuses.
        LinkLost: it cannot be reached.
    """
    job = Job(transport, folder, patience)
    tick = max(1, int(patience / 8))
    script = _START.format(
        parent=quote(folder.rpartition("/")[0] or "/"),
        folder=quote(folder),
        token=token_hex(8),
        size=len(give),
        command=quote(command),
        supervise=quote(_SUPERVISE.format(folder=quote(folder), tick=tick, patience=round(patience), killed=_KILLED)),
        finish=quote(_FINISH.format(end=ending(_mark(folder)))),
        mark=quote(_mark(folder)),
        boot=BOOT,
    )
    job._again(lambda: ask(transport, script, give))
    return job


def _mark(folder: str) -> str:
    """What the environment of a job's processes holds; the colon keeps runs/1 apart from runs/12."""
    return f"EDGEKIT_JOB={folder}:"


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 1


def _signal(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
