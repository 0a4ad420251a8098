"""What a device is, read with one POSIX script that toybox and busybox can run too, and whether it has room."""

from __future__ import annotations

import re
from shlex import quote
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.host.processor import CLASSES
from edgekit.lab.shell import BOOT, ask, refusal, told
from edgekit.types import DeviceFacts

if TYPE_CHECKING:
    from edgekit.lab.transport import Transport

# A line for each fact: its name and what the device said. A tree of /proc and /sys that lacks something prints nothing.
_SAY = """say() { [ -z "$2" ] || printf '%s %s\\n' "$1" "$2"; }"""

_READ = """{say}
first() {{ for file in "$@"; do [ -r "$file" ] && head -n 1 "$file" && return; done; }}
prop() {{ getprop "$1" 2>/dev/null; }}
{boot}; say boot "$boot"
say machine "$(uname -m)"
say identity "$(prop ro.serialno)"
say identity "$(first /sys/firmware/devicetree/base/serial-number /etc/machine-id /var/lib/dbus/machine-id)"
say model "$(prop ro.product.manufacturer) $(prop ro.product.model)"
say model "$(first /proc/device-tree/model /sys/firmware/devicetree/base/model)"
say model "$(first /sys/class/dmi/id/product_name)"
release=$(prop ro.build.version.release); [ -z "$release" ] || say system "Android $release"
say system "$([ -r /etc/os-release ] && . /etc/os-release && echo "$PRETTY_NAME")"
say system "$(uname -s) $(uname -r)"
[ -z "$release" ] || say libc bionic
say libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
say libc "$(echo $(ldd --version 2>&1 | head -n 2))"
for python in {pythons}; do
  found=$("$python" -c 'import platform as p; print(p.python_version())' 2>/dev/null) && say python "$found" && break
done
say soc "$(prop ro.soc.manufacturer) $(prop ro.soc.model)"
[ -r /proc/cpuinfo ] && grep -E -m 1 '^(model name|Hardware)' /proc/cpuinfo
[ -r /proc/cpuinfo ] && grep -E -m 1 '^(flags|Features)' /proc/cpuinfo
[ -r /proc/cpuinfo ] && say cores "$(grep -c '^processor' /proc/cpuinfo)"
[ -r /proc/meminfo ] && grep -E '^(MemTotal|MemAvailable)' /proc/meminfo
{disk}
exit 0"""

# Of the nearest folder that exists: free blocks for this user and their size. Some shells count in 32 bits, so the
# product is ours; `df` counts what is reserved for root on some.
_DISK = """at={home}
while [ ! -d "$at" ] && [ "$at" != / ]; do at=${{at%/*}}; at=${{at:-/}}; done
say disk "$(stat -f -c '%a %S' "$at" 2>/dev/null)\""""

_PROBE = """{say}
umask 077; mkdir -p {home} && cd {home} || exit 1
echo probe | cat > .probe && read -r back < .probe && [ "$back" = probe ] && rm .probe || {{ rm -f .probe; exit 1; }}
grep MemAvailable /proc/meminfo 2>/dev/null
{disk}"""


def read_facts(transport: Transport) -> DeviceFacts:
    """Ask a device what it is. What it does not say is None or "".

    Raises:
        LabError: it has no POSIX shell.
        LinkLost: it cannot be reached.
    """
    home = transport.home
    pythons = " ".join(quote(p) for p in (f"{home}/python/bin/python3", "python3", "python"))
    said = _said(
        ask(transport, _READ.format(say=_SAY, boot=BOOT, pythons=pythons, disk=_DISK.format(home=quote(home))))
    )
    flags = said.get("flags", said.get("Features", ""))
    return DeviceFacts(
        address=transport.address,
        identity=said.get("identity", ""),
        model=said.get("model", ""),
        system=said.get("system", ""),
        machine=said.get("machine", ""),
        libc=_libc(said.get("libc", "")),
        python=said.get("python", ""),
        processor=said.get("soc", "") or said.get("model name", said.get("Hardware", "")),
        processor_class=next((name for flag, name in CLASSES.items() if flag in flags.split()), ""),
        cores=_count(said.get("cores", "")),
        memory_bytes=_bytes(said.get("MemTotal", "")),
        free_memory_bytes=_bytes(said.get("MemAvailable", "")),
        free_disk_bytes=_bytes(said.get("disk", "")),
        boot_id=said.get("boot", ""),
    )


def require_room(transport: Transport, disk: int, memory: int = 0) -> None:
    """Check that a device's folder can be written and has room, before anything is sent.

    Args:
        transport: to the device.
        disk: bytes that will be stored.
        memory: bytes of RAM that will be used.

    Raises:
        LabError: its file system is read-only, full or not this user's, or there is too little room.
    """
    home = transport.home
    said = _said(ask(transport, _PROBE.format(say=_SAY, home=quote(home), disk=_DISK.format(home=quote(home)))))
    free, ram = _bytes(said.get("disk", "")), _bytes(said.get("MemAvailable", ""))
    if free is not None and free < disk:
        words = f"No space left on the device: {disk:,} bytes needed in {home}, {free:,} bytes free"
        raise refusal(transport.address, words)
    if ram is not None and ram < memory:
        raise LabError(
            f"{transport.address}: too little memory: {memory:,} bytes needed, {ram:,} bytes free",
            "end other programs there, or use a smaller bundle or less context",
        )


def _said(text: str) -> dict[str, str]:
    """Names and values; the first value of a name counts. ``name : value`` of /proc is a line like the others."""
    said: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":") if re.match(r"[\w ]+\s*:", line) else line.partition(" ")
        if value := (value.strip() if name.strip() in _LONG else told(value.encode())):
            said.setdefault(name.strip(), value)
    return said


_LONG = ("flags", "Features")


def _count(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and int(text) else None


def _bytes(text: str) -> int | None:
    """The bytes of ``123 kB``, or of ``123 4096``: blocks and their size."""
    found = re.fullmatch("([0-9]{1,15}) (kB|[0-9]{1,8})", text)
    return int(found[1]) * (1024 if found[2] == "kB" else int(found[2])) if found else None


def _libc(text: str) -> str:
    if found := re.search("(glibc|GNU libc|GLIBC|musl).*?([0-9]+\\.[0-9]+)", text):
        return f"{'musl' if found[1] == 'musl' else 'glibc'} {found[2]}"
    return text if text == "bionic" else ""
