"""The fork server: it imports edgekit once and runs every command line in a child of its own.

``python -m tests.fuzz.forking`` reads one JSON request a line and answers each with one JSON line. A child has limits
of memory and time, no network, no privilege to read what its modes forbid, and says each file that it opens to write.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
MEMORY = 1_000_000_000
"""Bytes that a child may take above what it starts with."""
_ROOM = 1 << 34
"""Bytes of addresses above the server's own; what asks for more gets a MemoryError."""
_LARGEST_FILE = 1 << 30
_OUTSIDE = "outside"


def warm() -> None:
    """Import what commands import, so that children need not. No threads may be started here."""
    import edgekit.bench.tune
    import edgekit.build.pipeline
    import edgekit.build.target_lint
    import edgekit.cli.app
    import edgekit.cli.calibration_tables
    import edgekit.cli.npu_tables
    import edgekit.cli.route_bench_tables
    import edgekit.cli.route_tables
    import edgekit.cli.tables
    import edgekit.cli.target_tables
    import edgekit.inspect.fit
    import edgekit.report
    import edgekit.routing.evaluation.bench
    import edgekit.routing.evaluation.calibrate
    import edgekit.routing.explain
    import edgekit.verify.bundle  # noqa: F401

    for name in ("gguf", "jinja2", "safetensors.numpy", "tokenizers", "onnxruntime", "huggingface_hub", "rich.table",
                 "rich.progress", "matplotlib.figure", "sklearn.linear_model", "jsonschema", "bm25s",
                 "starlette.applications", "uvicorn", "sqlalchemy", "openai", "typer.main"):  # fmt: skip
        with suppress(ImportError):
            __import__(name)
    from edgekit.cli import run

    # What the command line imports when it parses, complains and looks for a bundle.
    for words in (
        ["inspect", "/nowhere"],
        ["run", "/nowhere", "Hello"],
        ["route", "explain", "/nowhere", "Hello", "--x"],
    ):
        run(words)
    gc.collect()
    gc.freeze()


def main() -> None:
    """Serve until stdin ends."""
    # The protocol keeps its own stdout; what a library prints goes to stderr.
    _end_with_parent()
    replies = os.fdopen(os.dup(1), "w")
    errors = os.dup(2)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.dont_write_bytecode = True
    warm()
    os.dup2(errors, 2)
    replies.write("{}\n")
    replies.flush()
    for line in sys.stdin:
        replies.write(json.dumps(_serve(json.loads(line))) + "\n")
        replies.flush()


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    base = _resident(os.getpid())
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(request)
    most, why = base, ""
    pause, served = 0.001, request["command"][:1] != ["serve"]
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        most = max(most, _resident(pid))
        seconds = time.monotonic() - began
        if most - base > MEMORY:
            why = "memory"
        elif _processor(pid) > request["seconds"] or seconds > 6 * request["seconds"]:
            why = "hang"
        out = Path(request["log"]) / "stdout"
        if not served and out.exists() and out.stat().st_size:
            # A server that says where it listens has read all it was given: Ctrl-C.
            served = True
            os.kill(pid, signal.SIGINT)
        if why:
            if why == "hang" and _resident(pid):
                os.kill(pid, signal.SIGUSR1)  # faulthandler writes where it hangs
                time.sleep(0.1)
            os.killpg(pid, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.02, pause * 1.3)
    most = max(most, usage.ru_maxrss * 1024)
    with suppress(OSError):
        os.killpg(pid, signal.SIGKILL)  # whatever it started
    return {
        "status": status, "why": why or ("memory" if most - base > MEMORY else ""), "peak": most - base,
        "seconds": time.monotonic() - began,
    }  # fmt: skip


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _processor(pid: int) -> float:
    """Seconds of processor time, waiting children included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if len(fields) > 15 else 0.0


def _become(request: dict[str, Any]) -> None:
    """Be the command's process; never returns."""
    code = 2
    try:
        os.setpgid(0, 0)
        _end_with_parent()
        here, log = Path(request["folder"]), Path(request["log"])
        os.chdir(here)
        stdin = os.open(request["stdin"] or os.devnull, os.O_RDONLY)
        out, err, outside = (
            os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr", _OUTSIDE)
        )
        for source, target in ((stdin, 0), (out, 1), (err, 2)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
        os.environ.update(request["environment"])
        _limit()
        import faulthandler

        faulthandler.enable(2)
        faulthandler.register(signal.SIGUSR1, 2)
        _watch(here, outside, tuple(request["writes"]))
        from edgekit.cli import run

        code = run(request["command"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size + _ROOM, size + _ROOM))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The superuser reads what modes forbid; a child without capabilities does not. (Version 3, all sets empty.)
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, nothing)


_NEAR = (None, "localhost", "127.0.0.1", "::1")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.rename": ((0, 2), (1, 3)), "os.remove": ((0, 1),), "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),),
    "os.link": ((1, 3),), "os.symlink": ((1, 2),), "os.truncate": ((0, 0),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
}  # fmt: skip
"""Of each event that changes something: where its path stands, and the folder's descriptor that it is relative to."""


def _watch(here: Path, log: int, writes: tuple[str, ...]) -> None:
    """Write down every path that Python code changes outside of what a case may change; forbid the network."""
    mine = [here / w for w in ("out", ".home/.cache", ".home/.local", ".home/.config", ".tmp", *writes)]
    shared = (os.environ[name] for name in ("EDGEKIT_CACHE", "MPLCONFIGDIR"))
    allowed = tuple(os.path.realpath(path) for path in (*mine, *shared))
    said: set[str] = set()

    def tell(path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        real = os.path.realpath(os.fsdecode(path))
        if real.startswith(("/dev/", "/proc/")) or real in said:
            return
        if not any(fnmatchcase(real, a) or fnmatchcase(real, f"{a}/*") for a in allowed):
            said.add(real)
            os.write(log, (real.encode("unicode_escape") + b"\n"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITING:
                tell(path)
        elif event in _CHANGES:
            for at, folder in _CHANGES[event]:
                # What is relative to an open folder was found by walking there: that walk began with a path.
                relative = folder != at and arguments[folder] not in (-1, None)
                if not relative and not (event == "os.mkdir" and os.path.isdir(arguments[at])):  # noqa: PTH112
                    tell(arguments[at])
        elif event in ("socket.getaddrinfo", "socket.connect"):
            where = arguments[event == "socket.connect"]
            if (where[0] if isinstance(where, tuple) else where) not in _NEAR:
                raise ConnectionRefusedError("no network in a case")

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
