"""Run a command as if on a processor of an older class, at this processor's speed.

    python -m benchmarks.hidden avx2 -- make test
    python -m benchmarks.hidden avx512 -- python -m benchmarks.peers --rounds 7

Libraries pick their kernels by the CPUID instruction, which a Linux process can trap if the processor supports it
(``cpuid_fault`` in /proc/cpuinfo, Intel since Ivy Bridge, AMD since Zen 4). hidden.c then hides the newer instructions.
Kernels are those of the older class; clock, caches and memory are this machine's, and so are functions of the C
library, which are chosen earlier. Needs a C compiler. Measurements of edgekit record the class shown.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")

NEWER = {
    "avx512": ("avx512_", "avx512vbmi", "avx_vnni", "amx_", "gfni", "vaes", "vpclmulqdq"),
    "avx2": ("avx512", "avx_vnni", "amx_", "gfni", "vaes", "vpclmulqdq"),
    "avx": ("avx512", "avx_vnni", "amx_", "gfni", "vaes", "vpclmulqdq", "avx2", "bmi", "fma"),
    "sse4": ("avx", "amx_", "gfni", "vaes", "vpclmulqdq", "bmi", "fma", "f16c"),
}
"""By the newest class to show: prefixes of the flags to remove from /proc/cpuinfo."""


def can_hide() -> bool:
    """Whether this processor can trap CPUID."""
    try:
        return "cpuid_fault" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def hidden_environment(newest: str, folder: Path) -> dict[str, str]:
    """Environment variables that hide classes newer than ``newest``, a key of NEWER, from a process and its children.

    Args:
        newest: the class to show.
        folder: receives the library and the edited /proc/cpuinfo, and must outlive the process.

    Raises:
        subprocess.CalledProcessError: the C compiler failed.
        OSError: there is no C compiler.
    """
    library, shown = folder / "hidden.so", folder / "cpuinfo"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    shown.write_text(show(newest, Path("/proc/cpuinfo").read_text(encoding="utf-8")), encoding="utf-8")
    return {"LD_PRELOAD": str(library), "HIDE_BELOW": newest, "HIDE_CPUINFO": str(shown)}


def show(newest: str, cpuinfo: str) -> str:
    """Remove the flags of newer classes from /proc/cpuinfo, and note that in the processor's name."""
    lines = []
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if name.strip() == "flags":
            value = "".join(f" {flag}" for flag in value.split() if not flag.startswith(NEWER[newest]))
        elif name.strip() == "model name":
            value += f", newer than {newest} hidden"
        lines.append(f"{name}{colon}{value}\n")
    return "".join(lines)


def main() -> None:
    if len(sys.argv) < 4 or sys.argv[1] not in NEWER or sys.argv[2] != "--":
        sys.exit(f"usage: python -m benchmarks.hidden {'|'.join(NEWER)} -- COMMAND ...")
    if not can_hide():
        sys.exit("error: this processor cannot trap CPUID (no cpuid_fault in /proc/cpuinfo)\nhint: use qemu-user")
    with tempfile.TemporaryDirectory(prefix="hidden-") as folder:
        environment = os.environ | hidden_environment(sys.argv[1], Path(folder))
        sys.exit(subprocess.run(sys.argv[3:], check=False, env=environment).returncode)


if __name__ == "__main__":
    main()
