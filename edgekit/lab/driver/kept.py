"""What is kept on a device, by content: the driver, wheels, bundles. What is there is not pushed again.

``<home>/kept/<name>`` is an item, whole, with a list of its files in ``.files``: ``sha256 bytes path``. A new item is
made in ``.new-<name>`` and renamed. A file that another item already has is linked, or copied there. Items that were
not used for longest are removed when all together exceed a budget, or when room is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import file_digest, sha256
from shlex import quote
from typing import TYPE_CHECKING, Literal

from edgekit import words
from edgekit.errors import BundleError, LabError
from edgekit.lab.shell import ask
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edgekit.lab.driver.python import Python
    from edgekit.lab.transport import Transport

BUDGET = 16_000_000_000
"""Most bytes of all items that are kept on a device; those in use do not count."""

RESERVE = 64_000_000
"""Bytes that stay free on a device."""

_UNPACKED = {"": 0, "zip": 4, "tar": 1}
"""Most times as large as an archive that its content is, by kind: wheels of onnxruntime are 3 times."""

# ``touch`` makes an item the last to go. Names are the host's own; what a stranger put there is not listed as ours.
_LIST = """umask 077; mkdir -p {kept} && cd {kept} || exit 1
for name in {wanted}; do [ -f "$name/.files" ] && touch "$name"; done
df -Pk . | tail -n 1 | {{ read -r a b c free rest; echo "free $free"; }}
ls -1t | while read -r name; do [ -f "$name/.files" ] && echo "item $name" && cat "$name/.files"; done
exit 0"""


@dataclass(frozen=True)
class KeptFile:
    """A file of an item: its path there, where it is here, its sha256 and size."""

    path: str
    source: Path
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Item:
    """What is kept together. ``unpack``: its files are archives of that kind, and their content is kept instead."""

    kind: str
    files: tuple[KeptFile, ...]
    unpack: Literal["", "zip", "tar"] = ""

    @property
    def name(self) -> str:
        """Its kind and a hash of its content."""
        told = "".join(f"{file.path} {file.sha256}\n" for file in self.files)
        return f"{self.kind}-{sha256(told.encode()).hexdigest()[:24]}"

    @property
    def unpacked(self) -> int:
        """Most bytes of what its archives hold."""
        return _UNPACKED[self.unpack] * sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class _There:
    """What a device has: items with their files, the last used first, and its free bytes."""

    items: dict[str, tuple[tuple[str, int, str], ...]]
    free: int | None

    def size(self, name: str) -> int:
        return sum(size for _, size, _ in self.items[name])

    def place(self, digest: str) -> str:
        """A file with this content, as a path below ``kept``; "" if there is none."""
        return next(
            (f"{name}/{path}" for name, files in self.items.items() for found, _, path in files if found == digest), ""
        )


def keep(
    transport: Transport, items: Sequence[Item], python: Python | None, progress: Progress = silent
) -> tuple[str, ...]:
    """Bring items to a device unless they are there, and return their folders.

    Args:
        transport: to the device, whose lease should be held.
        items: what the next run needs.
        python: the device's, which unpacks zips; None if none is among the items.
        progress: called with the bytes pushed.

    Raises:
        LabError: the device is full or read-only, which is found out before anything is pushed.
        BundleError: a file here is not what the bundle's manifest says.
        LinkLost: the link was lost; what was pushed whole is found by the next attempt.
    """
    home = f"{transport.home}/kept"
    names = [item.name for item in items]
    there = _look(transport, home, names)
    missing = [item for item in items if item.name not in there.items]
    if missing:
        _make_room(transport, home, there, missing, frozenset(names))
        for item in missing:
            _bring(transport, home, item, there, python, progress)
    return tuple(f"{home}/{name}" for name in names)


def file_of(path: str, source: Path, expected: str = "") -> KeptFile:
    """A file with its sha256, computed now unless it is known."""
    if not expected:
        with source.open("rb") as stream:
            expected = file_digest(stream, "sha256").hexdigest()
    return KeptFile(path, source, expected, source.stat().st_size)


def _look(transport: Transport, home: str, names: Sequence[str]) -> _There:
    items: dict[str, list[tuple[str, int, str]]] = {}
    free = None
    name = ""
    for line in ask(transport, _LIST.format(kept=quote(home), wanted=" ".join(names))).splitlines():
        if found := re.fullmatch(r"([0-9a-f]{64}) (\d{1,15}) ([\w.+/-]+)", line):
            if name and ".." not in found[3]:
                items[name].append((found[1], int(found[2]), found[3]))
        elif found := re.fullmatch(r"item ([\w-]+)", line):
            name = found[1]
            items[name] = []
        elif found := re.fullmatch(r"free (\d{1,15})", line):
            free = 1024 * int(found[1])
    return _There({name: tuple(files) for name, files in items.items()}, free)


def _make_room(transport: Transport, home: str, there: _There, missing: Sequence[Item], in_use: frozenset[str]) -> None:
    """Remove what was not used for longest, as far as the new items need it.

    Raises:
        LabError: even then they do not fit.
    """
    new = sum(file.bytes for item in missing for file in item.files if item.unpack or not there.place(file.sha256))
    new += sum(item.unpacked for item in missing)
    idle = [name for name in reversed(there.items) if name not in in_use]
    kept = sum(map(there.size, idle))
    needed = None if there.free is None else new + RESERVE - there.free
    gone: list[str] = []
    # Files that the new items share with an old one are linked before it goes, so they need no room twice.
    shared = {place.partition("/")[0] for item in missing for f in item.files if (place := there.place(f.sha256))}
    for name in idle:
        if name in shared or not (kept > BUDGET or (needed is not None and needed > 0)):
            continue
        gone.append(name)
        kept -= there.size(name)
        needed = None if needed is None else needed - there.size(name)
    if needed is not None and needed > 0:
        raise LabError(
            f"{transport.address}: {words.size(new)} are to be pushed, and {words.size(there.free or 0)} are free",
            f"free {words.size(needed)} there, or use a smaller bundle",
        )
    # What a push of something else left half-made goes too.
    left = " ".join(f"! -name .new-{item.name}" for item in missing)
    clean = f"find . -maxdepth 1 -name '.new-*' {left} -exec rm -rf {{}} +"
    ask(transport, f"cd {quote(home)} && rm -rf {' '.join(gone)}; {clean}", seconds=600.0)
    for name in gone:
        del there.items[name]


def _bring(
    transport: Transport, home: str, item: Item, there: _There, python: Python | None, progress: Progress
) -> None:
    new, whole = f"{home}/.new-{item.name}", f"{home}/{item.name}"
    folders = sorted({f"{new}/{file.path}".rpartition("/")[0] for file in item.files})
    # What an interrupted push left is not whole, except for files that arrived.
    ask(transport, f"umask 077; mkdir -p {' '.join(map(quote, folders))}")
    for file in item.files:
        target = f"{new}/{file.path}"
        if place := there.place(file.sha256):
            old = quote(f"{home}/{place}")
            ask(transport, f"ln -f {old} {quote(target)} 2>/dev/null || cp -f {old} {quote(target)}", seconds=600.0)
        elif _digest(transport, target, file) != file.sha256:
            _require_same(file)
            transport.put(file.source, target, progress)
            if _digest(transport, target, file) != file.sha256:
                raise LabError(
                    f"{transport.address}: {file.path} did not arrive there as it was sent",
                    "look at the device's storage and its cable, then run again",
                )
    listed = [f"{file.sha256} {file.bytes} {file.path}" for file in item.files]
    script = f"cd {quote(new)} || exit 1\n"
    if item.unpack:
        command = "tar -xf {}" if item.unpack == "tar" else f"{python.command} -m zipfile -e {{}} ." if python else ""
        for file in item.files:
            script += f"{command.format(quote(file.path))} && rm {quote(file.path)} || exit 1\n"
        listed = [f"{'0' * 64} {item.unpacked} ."]
    script += f"printf '%s\\n' {' '.join(map(quote, listed))} > .files && cd .. || exit 1\n"
    ask(transport, f"{script}rm -rf {quote(whole)} && mv {quote(new)} {quote(whole)}", seconds=600.0)


def _digest(transport: Transport, target: str, file: KeptFile) -> str:
    """The sha256 of a file there, "" if it is not there or has another size."""
    size = f'[ "$(($(wc -c < {quote(target)})))" = {file.bytes} ]'
    found = ask(transport, f"[ -f {quote(target)} ] && {size} && sha256sum {quote(target)}; exit 0", seconds=600.0)
    return found.partition(" ")[0]


def _require_same(file: KeptFile) -> None:
    """Raise if a file here has another content than is told of it."""
    if file_of(file.path, file.source).sha256 != file.sha256:
        raise BundleError(f"{file.source} has changed: its sha256 is another", "copy the bundle again, or rebuild it")
