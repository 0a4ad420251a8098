"""The driver's program: does a Task on the device, and prints the lines of ``types/lab.py``.

It needs the standard library, numpy and onnxruntime; ``archive.py`` packs it with the modules it uses. The lines
of ``logits`` have arrays in between, as those of ``run/predictor_worker.py``. Exit status: 0 done, 1 failed as the last
line says, else a bug or a signal.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError, LabError
from edgekit.measure.conditions import Watch, boot_seconds
from edgekit.record import from_json, to_json
from edgekit.types.bundle import Bundle
from edgekit.types.generation import Sampling
from edgekit.types.lab import LINES, Done, Failed, Hello, Line, Mark, Rate, Task, Token

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, BinaryIO

    from edgekit.run.runner import OnnxRunner
    from edgekit.types.measurement import Energy, Measurement, PowerProbe

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"}
"""Set before numpy is loaded; see measure/ceilings.py."""

BURSTS = 3
BURST_SECONDS, PAUSE_SECONDS = 1.5, (2.1, 3.3, 2.7)
"""Length of the bursts of load, and the pauses after each, whose pattern fits one place of a trace only. A meter that
is read four times a second shows them."""

IDLE_SECONDS = 5.0
"""Length of a rest; as ``bench`` rests before and after it measures energy."""

STRETCH = 128
"""Tokens that ``sustain`` decodes before it starts again at the same depth, so that depth bends no curve."""

_WORDS = {cls: word for word, cls in LINES.items()}


class Printer:
    """Prints lines, from several threads."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._lock = out, Lock()
        self.marks: list[Mark] = []
        """What was marked so far."""

    def __call__(self, line: Line) -> None:
        """Print one line, whole."""
        text = f'{{"{_WORDS[type(line)]}":{to_json(line)}}}\n'.encode()
        with self._lock:
            self._out.write(text)
            self._out.flush()

    def mark(self, name: str) -> None:
        """Print a Mark with the time now."""
        self.marks.append(Mark(boot_seconds(), name))
        self(self.marks[-1])

    def array(self, shape: Sequence[int], data: bytes) -> None:
        """Print a line with a shape, then the array's bytes."""
        with self._lock:
            self._out.write(json.dumps(list(shape)).encode() + b"\n" + data)
            self._out.flush()


def main(task: str, driver: str = "") -> int:
    """Do the Task in a file. ``driver``: this driver's name, which Hello repeats."""
    os.environ.update(ENVIRONMENT)
    printed = Printer(sys.stdout.buffer)
    try:
        asked = from_json(Task, Path(task).read_text(encoding="utf-8"))
        _hello(printed, driver)
        watch: AbstractContextManager[object] = nullcontext() if asked.do == "logits" else Watch(printed)
        with watch:
            measurement, energy = _do(asked, printed)
    except EdgekitError as error:
        printed(Failed(boot_seconds(), error.message, error.hint))
        return 1
    except MemoryError:
        printed(Failed(boot_seconds(), "the device has too little memory", "end other programs, or use fewer bits"))
        return 1
    printed(Done(boot_seconds(), measurement, energy))
    return 0


def _hello(printed: Printer, driver: str) -> None:
    import numpy as np

    from edgekit import __version__
    from edgekit.host.processor import processor_class
    from edgekit.measure.sampling import read_word
    from edgekit.run.runtime import onnxruntime

    versions = (("edgekit", __version__), ("onnxruntime", onnxruntime.__version__), ("numpy", np.__version__))
    boot = read_word(Path("/proc/sys/kernel/random/boot_id"))
    printed(Hello(boot_seconds(), driver, platform.python_version(), versions, os.getpid(), boot, processor_class()))


def _do(task: Task, printed: Printer) -> tuple[Measurement | None, Energy | None]:
    from edgekit.bundle.manifest import read_manifest

    path = Path(task.bundle)
    bundle = Bundle(path, read_manifest(path))
    energy = None
    if task.marks:
        _bursts(printed)
        _rest(printed)
    measurement = _bench(task, bundle, printed) if task.do == "bench" else None
    if measurement is None:
        work: dict[str, Callable[[Task, OnnxRunner, Printer], Energy | None]]
        work = {"sustain": _sustain, "generate": _generate, "logits": _logits}
        with closing(_open(task, bundle, printed)) as runner:
            energy = work[task.do](task, runner, printed)
    if task.marks:
        _rest(printed)
        _bursts(printed)
    return measurement, energy


def _bench(task: Task, bundle: Bundle, printed: Printer) -> Measurement:
    from edgekit.bench.latency import bench_bundle

    return bench_bundle(
        bundle,
        pp=task.pp,
        tg=task.tg,
        depth=task.depth,
        repetitions=task.repetitions,
        warmup=task.warmup,
        threads=task.threads,
        small_memory=task.small_memory,
        settings=task.settings,
        meter=_meter(task.meter),
        mark=printed.mark,
    )


def _meter(name: str) -> PowerProbe | None:
    """The device's meter of that name; None for the usual one."""
    from edgekit.measure.energy import open_meter

    return open_meter(name) if name else None


def _open(task: Task, bundle: Bundle, printed: Printer) -> OnnxRunner:
    from edgekit.run.runner import load_runner
    from edgekit.run.settings import default_settings

    # Quality must not depend on how the device was tuned.
    usual = default_settings(bundle.manifest) if task.do == "logits" else None
    settings = task.settings or usual
    printed.mark("load begin")
    runner = load_runner(bundle, threads=task.threads, small_memory=task.small_memory, settings=settings)
    printed.mark("load end")
    return runner


def _sustain(task: Task, runner: OnnxRunner, printed: Printer) -> Energy | None:
    """Decode for ``task.seconds``, between rests that a meter of the device's own reads too.

    With bursts, a meter beside the device is read, and none here.
    """
    from edgekit.errors import MeasureError
    from edgekit.measure.energy import account_marks, choose_meter, open_meter
    from edgekit.measure.trace import watts
    from edgekit.types.lab import Power
    from edgekit.types.measurement import Energy

    probe, reason = None, "the meter is beside the device"
    if not task.marks:
        probe, reason = (open_meter(task.meter), "") if task.meter else choose_meter()
    if probe is None:
        _decode(task, runner, printed)
        return Energy("none", reason=reason)
    try:
        probe.start()
        try:
            _rest(printed)
            tokens = _decode(task, runner, printed)
            _rest(printed)
        finally:
            probe.stop()
        trace = probe.trace()
    except MeasureError as error:
        return Energy("none", meter=probe.name, reason=f"{error.message} ({error.hint})")
    for at, value in watts(trace):
        printed(Power(at, value))
    return account_marks(trace, printed.marks, sustained=tokens)


def _decode(task: Task, runner: OnnxRunner, printed: Printer) -> int:
    """Decode at the first depth for ``task.seconds``, printing a Rate each second. Returns the tokens."""
    import numpy as np

    depth = task.depth[0] if task.depth else 0
    stretch = min(STRETCH, runner.context_length - depth)
    if stretch < 1:
        raise LabError(
            f"a depth of {depth} tokens leaves no room in the context of {runner.context_length}", "use a smaller depth"
        )
    random = np.random.default_rng(0)
    if depth:
        runner.prefill(random.integers(runner.vocab_size, size=depth).tolist())
    tokens = random.integers(runner.vocab_size, size=stretch).tolist()
    printed.mark(f"sustain@{depth} begin")
    begin = last = perf_counter()
    count = total = 0
    while last - begin < task.seconds:
        if runner.length >= depth + stretch:
            runner.rewind(depth)
        runner.step(tokens[runner.length - depth])
        count += 1
        total += 1
        now = perf_counter()
        if now - last >= 1.0:
            printed(Rate(boot_seconds(), now - last, count))
            last, count = now, 0
    printed.mark(f"sustain@{depth} end")
    return total


class _NoText:
    """What ``generate`` needs of a tokenizer where only ids are wanted: the ends, and text that is always empty."""

    def __init__(self, ends: tuple[int, ...]) -> None:
        self.eos_ids = ends

    def stream(self) -> _NoText:
        return self

    def mark(self, _: int) -> tuple[str, str]:
        return "", ""

    def push(self, _: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def _generate(task: Task, runner: OnnxRunner, printed: Printer) -> Energy | None:
    """Print a Token for each that continues ``task.tokens``. Text, and stop strings, are the host's."""
    from edgekit.run.generation import generate

    sampling = replace(task.sampling or Sampling(), max_new_tokens=task.max_tokens or None, stop=())
    ends: Any = _NoText(task.stop)
    for emitted in generate(runner, ends, task.tokens, sampling):
        printed(Token(boot_seconds(), emitted.token))
    return None


def _logits(task: Task, runner: OnnxRunner, printed: Printer) -> Energy | None:
    """Answer each line of token ids on stdin."""
    del task
    import numpy as np

    for line in sys.stdin:
        logits = runner.logits(json.loads(line))
        printed.array(logits.shape, np.ascontiguousarray(logits, "<f4").tobytes())
    return None


def _rest(printed: Printer) -> None:
    """Do nothing for a while, so that a meter shows the power of an idle device."""
    printed.mark("idle begin")
    sleep(IDLE_SECONDS)
    printed.mark("idle end")


def _bursts(printed: Printer) -> None:
    """Load all cores in a pattern that a meter's trace shows too, so that its clock can be aligned."""
    for number, pause in enumerate(PAUSE_SECONDS, 1):
        printed.mark(f"burst {number} begin")
        end = perf_counter() + BURST_SECONDS
        busy = [Thread(target=_spin, args=(end,)) for _ in range(os.cpu_count() or 1)]
        for thread in busy:
            thread.start()
        for thread in busy:
            thread.join()
        printed.mark(f"burst {number} end")
        sleep(pause)


def _spin(end: float) -> None:
    a = _matrix()
    while perf_counter() < end:
        a @ a


@cache
def _matrix() -> Any:
    import numpy as np

    return np.ones((256, 256), np.float32)
