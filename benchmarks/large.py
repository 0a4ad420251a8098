"""Measure builds of growing models: wall time, peak memory, bytes read and written, and the lower bound.

    python benchmarks/large.py --work FOLDER [--shapes 135M,1B,8B] [--peer 135M,1B] [--plain 8B] [--results FILE.jsonl]
    python benchmarks/large.py --smoke

Builds of random BF16 checkpoints (see shapes.py) to INT4 run as whole processes, with the source evicted from the page
cache. Wall time includes imports; peak RSS is the kernel's number for the process, which has no children; bytes are
those of its system calls (rchar and wchar of /proc/PID/io: reading twice counts twice, mapped files do not count). The
floor, measured after each build, reads the source once, cold, and then writes and syncs as many bytes as the bundle
has. A peer that fails gets a row with the reason; its address space is limited to --limit-gb.
"""

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from results import append_lines
from shapes import make_checkpoint

from edgekit.host.processor import processor_class, processor_name

GB = 1e9
CHUNK = 1 << 22


@dataclass(frozen=True)
class Row:
    """One build process and the floor for the same bytes, in seconds and bytes; ``reason``: why it failed."""

    tool: str
    shape: str
    source_bytes: int
    out_bytes: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    read_bytes: int
    written_bytes: int
    floor_read_seconds: float
    floor_write_seconds: float
    reason: str = ""

    @property
    def floor(self) -> float:
        """Seconds to read the source and then write the result."""
        return self.floor_read_seconds + self.floor_write_seconds


def evict(folder: Path) -> None:
    """Evict a folder's files from the page cache."""
    for path in folder.glob("*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def floor(source: Path, size: int, scratch: Path) -> tuple[float, float]:
    """Seconds to read all of the source, cold, and to write and sync ``size`` bytes."""
    evict(source)
    buffer = memoryview(bytearray(os.urandom(CHUNK)))
    started = time.perf_counter()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    read = time.perf_counter() - started
    started = time.perf_counter()
    with tempfile.NamedTemporaryFile(dir=scratch, buffering=0) as file:
        for at in range(0, size, CHUNK):
            file.write(buffer[: min(CHUNK, size - at)])
        os.fsync(file.fileno())
    return read, time.perf_counter() - started


def measure(tool: str, command: list[str], shape: str, source: Path, out: Path, limit: int | None) -> Row:
    """Run one build from a cold source and read its resource usage from the kernel."""
    shutil.rmtree(out, ignore_errors=True)
    evict(source)
    log = out.with_name("log")
    started = time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | OFFLINE)
    if limit:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    moved = [0, 0]

    def watch() -> None:
        # The last sample is at most 20 ms before the end, when only a few small files remain to be written.
        while process.returncode is None:
            try:
                words = dict(line.split(": ") for line in Path(f"/proc/{process.pid}/io").read_text().splitlines())
                moved[:] = int(words["rchar"]), int(words["wchar"])
            except OSError:
                pass
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    watcher.join()
    said_last = (log.read_text(errors="replace").strip().splitlines() or [""])[-1]
    log.unlink()
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) if out.is_dir() else 0
    weights = sum(f.stat().st_size for f in source.glob("*.safetensors"))
    reason = (
        f"exit code {process.returncode}: {said_last.replace(str(source.parent), '')[:160]}"
        if process.returncode
        else ""
    )
    transfer = floor(source, size, source.parent) if not reason else (0.0, 0.0)
    return Row(
        tool, shape, weights, size, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, *moved,
        *transfer, reason,
    )  # fmt: skip


CPU = processor_name() or platform.machine()

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def ours(source: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "edgekit", "build", str(source), "-o", str(out), "--offline"]


def without_numba(source: Path, out: Path) -> list[str]:
    """Our build without numba, in NumPy only."""
    program = "import sys; sys.modules['numba'] = None; from edgekit.cli import main; main()"
    return [sys.executable, "-c", program, "build", str(source), "-o", str(out), "--offline"]


def theirs(source: Path, out: Path) -> list[str]:
    cache = out.with_name("cache")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    return [*builder, "-i", str(source), "-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(cache)]


def show(row: Row) -> None:
    if row.reason:
        print(
            f"{row.tool:<18} {row.shape:>5} {row.source_bytes / GB:7.2f} GB      failed after {row.seconds:.0f} s at "
            f"{row.peak_rss_bytes / GB:.2f} GB: {row.reason}",
            flush=True,
        )
        return
    print(
        f"{row.tool:<18} {row.shape:>5} {row.source_bytes / GB:7.2f} GB {row.out_bytes / GB:6.3f} GB "
        f"{row.seconds:8.2f} s {row.cpu_seconds:7.1f} s {row.peak_rss_bytes / GB:7.3f} GB "
        f"{row.read_bytes / GB:7.2f} GB {row.written_bytes / GB:6.2f} GB "
        f"{row.floor_read_seconds:6.2f} + {row.floor_write_seconds:5.2f} s "
        f"{row.seconds / row.floor:6.2f}x {row.seconds / row.source_bytes * GB:6.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for checkpoints and bundles; 22 GB for 8B")
    parser.add_argument("--shapes", default="135M,1B,8B")
    parser.add_argument("--peer", default="135M,1B,8B", help='shapes for onnxruntime-genai; "" for none')
    parser.add_argument("--plain", default="8B", help='shapes to build without numba as well; "" for none')
    parser.add_argument("--limit-gb", type=float, default=20, help="limit of the peer's address space")
    parser.add_argument("--results", type=Path, help="append JSON lines to this file")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, no peer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        shapes = ["tiny"] if options.smoke else options.shapes.split(",")
        peer = [] if options.smoke else options.peer.split(",")
        plain = [] if options.smoke else options.plain.split(",")
        print(
            f"{CPU} ({processor_class() or 'unknown class'}), {os.cpu_count()} cores; page cache cold, random weights"
        )
        print(
            f"{'':<18} {'':>5} {'source':>10} {'bundle':>9} {'wall':>10} {'CPU':>9} {'peak RSS':>10} {'read':>10} "
            f"{'written':>9} {'floor r + w':>16} {'wall/floor':>10} s/GB"
        )
        for shape in shapes:
            source = make_checkpoint(work / shape, shape)
            plans = [("edgekit", ours, None)]
            if shape in plain:
                plans.append(("edgekit, no numba", without_numba, None))
            if shape in peer:
                plans.append(("onnxruntime-genai", theirs, int(options.limit_gb * GB)))
            for tool, command, limit in plans:
                out = work / "out"
                row = measure(tool, command(source, out), shape, source, out, limit)
                shutil.rmtree(out, ignore_errors=True)
                shutil.rmtree(work / "cache", ignore_errors=True)
                show(row)
                if options.results:
                    append_lines(options.results, [{"cores": os.cpu_count(), **asdict(row)}])
                if tool == "edgekit" and row.reason:
                    sys.exit(row.reason)


if __name__ == "__main__":
    main()
