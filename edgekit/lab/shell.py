"""Pieces of POSIX ``sh`` for devices, with nothing that toybox and busybox lack."""

from __future__ import annotations

from secrets import token_hex
from shlex import quote
from typing import TYPE_CHECKING

from edgekit.errors import LabError

if TYPE_CHECKING:
    from edgekit.lab.transport import Transport

LONGEST = 200
"""Characters of a device's text that a message shows."""

UPTIME = "read -r now rest < /proc/uptime; now=${now%%.*}"
"""Sets ``now`` to the seconds since boot: a device's clock may be wrong, or be set in the middle of a run."""

BOOT = (
    "boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || getprop ro.boottime.init 2>/dev/null"
    " || grep btime /proc/stat)"
)
"""Sets ``boot`` to what is another text after every boot."""

_END = """for round in 1 2 3 4 5 6 7 8 9 10; do
  left=
  for file in $(grep -lF {mark} /proc/[0-9]*/environ 2>/dev/null); do
    process=${{file#/proc/}}; process=${{process%/environ}}
    [ "$process" != "$$" ] && kill -0 "$process" 2>/dev/null && left="$left $process"
  done
  [ -n "$left" ] || break
  kill -9 $left 2>/dev/null
  sleep 0.1 2>/dev/null || sleep 1
done
[ -z "$left" ]"""


def ending(mark: str) -> str:
    """A script that kills every process whose environment holds ``mark``, but itself; exit status 0 if none is left.

    Unlike a process group or a session, a child cannot leave its environment by accident.
    """
    return _END.format(mark=quote(mark))


def marked(command: str, mark: str) -> str:
    """A line that runs ``command`` in a sh of its own with ``mark`` in its environment, whatever the login shell is."""
    return f"exec env {mark} sh -c {quote(command)}"


def mark_of_its_own() -> str:
    """A mark for one command."""
    return f"EDGEKIT_RUN={token_hex(8)}"


def late(address: str, command: str, seconds: float | None) -> LabError:
    """The error of a command that took too long."""
    brief = command if len(command) < 60 else f"{command[:57]}..."
    return LabError(
        f"{address}: `{brief}` did not end within {seconds or 0:g} s",
        "look at what the device is doing, then try again",
    )


def told(data: bytes) -> str:
    """A device's words for a message: printable, on one line, the last of them if there are many."""
    words = " ".join(data.replace(b"\0", b"").decode(errors="replace").split())
    return "".join(c if c.isprintable() else "?" for c in words)[-LONGEST:]


def ask(transport: Transport, script: str, give: bytes = b"", seconds: float = 60.0) -> str:
    """Run a script that must succeed, and return what it printed.

    Raises:
        LabError: it failed; the message has the device's own words.
    """
    done = transport.run(script, give, seconds)
    if done.code:
        raise refusal(transport.address, told(done.err) or f"a command ended with status {done.code}")
    return done.out.decode(errors="replace")


def refusal(address: str, words: str) -> LabError:
    """The error of a device that refused something with ``words``, and its fix where they are known ones."""
    known = {
        "No space left": "free some space there",
        "I/O error": "look whether its disk is full or broken",
        "Read-only file system": "mount it writable, or use a device folder elsewhere",
        "Permission denied": "let this user write there, or log in as another",
    }
    hint = next(
        (fix for text, fix in known.items() if text.lower() in words.lower()), "run `edgekit lab check` with it"
    )
    return LabError(f"{address}: {words}", hint)


def sized(path: str, size: int) -> str:
    """A test for the size of a file. Not in the shell's arithmetic, which has 32 bits on Android."""
    return f"[ $(wc -c < {quote(path)}) = {size} ]"  # unquoted: some print spaces before the number


def storing(target: str, size: int) -> str:
    """A script that stores its stdin, ``size`` bytes, as ``target``: whole, or not at all if the link is lost."""
    part = quote(f"{target}.part")
    return (
        f'{{ cat > {part} && [ "$(($(wc -c < {part})))" = {size} ] && mv -f {part} {quote(target)}; }}'
        f" || {{ rm -f {part}; exit 1; }}"
    )
