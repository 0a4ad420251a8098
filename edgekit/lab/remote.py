"""``bench`` and ``run`` on another device: the same numbers as here, from there. ``quality.py`` has ``verify``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from edgekit.errors import LabError
from edgekit.lab.driver.device import Device, open_device
from edgekit.lab.driver.program import STRETCH
from edgekit.lab.energy import metered
from edgekit.lab.facts import read_facts
from edgekit.lab.lease import lease
from edgekit.lab.steady import curve_of
from edgekit.lab.transport import connect
from edgekit.types import Emitted, Progress, Task, silent
from edgekit.types.fleet import Sustained
from edgekit.types.lab import Done, Hello, Mark, Power, Rate, Sample, Token
from edgekit.types.measurement import Energy

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from edgekit.run import Finish, Tokenizer
    from edgekit.run.generation import Transcript
    from edgekit.types import Bundle, Measurement, Sampling
    from edgekit.types.lab import Line

AT_ONCE = 0.05
"""Seconds between looks at what a device prints, where someone waits for it."""


@contextmanager
def held_device(address: str, progress: Progress = silent) -> Iterator[Device]:
    """Connect to a device and hold its lease for the block.

    Raises:
        LabError: unknown, used by another, or without a Python that can run the driver.
        LinkLost: nothing answers there.
    """
    with closing(connect(address)) as transport, lease(transport), open_device(transport, progress) as device:
        yield device


def bench_on(
    address: str,
    bundle: Bundle,
    *,
    pp: Sequence[int] = (512,),
    tg: Sequence[int] = (128,),
    depth: Sequence[int] = (0, 512, 2048),
    repetitions: int = 5,
    warmup: int = 1,
    threads: int | None = None,
    small_memory: bool = False,
    meter: str = "",
    progress: Progress = silent,
) -> Measurement:
    """Measure a bundle on a device, as ``bench_bundle`` does here.

    Args:
        address: the device's, as for ``connect``.
        bundle: as for bench_bundle, as are all others.
        pp: prompt lengths.
        tg: numbers of decoded tokens.
        depth: tokens of context before decoding.
        repetitions: timed rounds.
        warmup: untimed rounds before them.
        threads: by default the device's physical cores.
        small_memory: as in load_runner.
        meter: NAME[:ADDRESS] of a meter of the device, or of one beside it that this machine reads.
        progress: called with the bytes pushed, and for every timed workload.

    Raises:
        LabError: the device refuses, lacks something or fails.
        LinkLost: it is gone.
    """
    context = bundle.manifest.context_length
    fits = [d + n for d in depth for n in tg if d + n <= context]
    prompts = [n for n in pp if n <= context]
    total = repetitions * (len(fits) + len(prompts))
    task = Task(
        "bench",
        "",
        threads=threads,
        small_memory=small_memory,
        pp=tuple(pp),
        tg=tuple(tg),
        depth=tuple(depth),
        repetitions=repetitions,
        warmup=warmup,
    )
    done = 0
    with held_device(address, progress) as device:
        folder = device.bring(bundle, max((*fits, *prompts), default=1), small_memory=small_memory)
        for line in metered(device.lines, replace(task, bundle=folder), meter, time.sleep):
            if isinstance(line, Mark) and line.name.startswith(("pp", "tg")) and line.name.endswith("end"):
                done += 1
                progress(f"measuring on {address}", min(done, total), total, "workloads")
            if isinstance(line, Done):
                return _own(line, bundle, address)
    raise LabError(f"{address}: the driver sent no measurement", "run again")


def sustain_on(
    address: str,
    bundle: Bundle,
    seconds: float,
    *,
    depth: int = 0,
    threads: int | None = None,
    small_memory: bool = False,
    meter: str = "",
    progress: Progress = silent,
) -> Sustained:
    """Decode on a device for a long time: tok/s, temperature, clock and power over time, and where they level off.

    Args:
        address: the device's, as for ``connect``.
        bundle: the opened bundle.
        seconds: how long.
        depth: tokens of context before decoding.
        threads: by default the device's physical cores.
        small_memory: as in load_runner.
        meter: as for bench_on.
        progress: called with the bytes pushed, and every second.

    Raises:
        LabError: as for bench_on.
    """
    task = Task("sustain", "", threads=threads, small_memory=small_memory, depth=(depth,), seconds=seconds)
    time_of_day = datetime.now(UTC).isoformat(timespec="seconds")
    lines: list[Line] = []
    with held_device(address, progress) as device:
        facts = read_facts(device.transport)
        folder = device.bring(bundle, depth + STRETCH, small_memory=small_memory)
        for line in metered(device.lines, replace(task, bundle=folder), meter, time.sleep):
            lines.append(line)
            if isinstance(line, Rate):
                progress(
                    f"decoding on {address}",
                    int(sum(r.seconds for r in lines if isinstance(r, Rate))),
                    int(seconds),
                    "s",
                )
    rates = [line for line in lines if isinstance(line, Rate)]
    hello = next((line for line in lines if isinstance(line, Hello)), None)
    done = next((line for line in lines if isinstance(line, Done)), None)
    if hello is None or done is None or not rates:
        raise LabError(f"{address}: the driver sent no tok/s", "run for some seconds at least")
    samples = [line for line in lines if isinstance(line, Sample)]
    power = [line for line in lines if isinstance(line, Power)]
    marks = [line for line in lines if isinstance(line, Mark)]
    return Sustained(
        device=address,
        host=facts.processor,
        processor_class=facts.processor_class,
        bundle_sha256=bundle.sha256,
        model=bundle.manifest.provenance.id,
        versions=hello.versions,
        time=time_of_day,
        seconds=sum(rate.seconds for rate in rates),
        tokens=sum(rate.tokens for rate in rates),
        curve=curve_of(rates, samples, power, marks),
        energy=done.energy or Energy("none", reason="the driver sent none"),
    )


def _own(line: Done, bundle: Bundle, address: str) -> Measurement:
    found = line.measurement
    if found is None or found.bundle_sha256 != bundle.sha256:
        raise LabError(f"{address}: the driver sent no measurement of this bundle", "report this, with the device")
    return found


class Answering(Iterator[Emitted]):
    """An answer in progress on a device, as ``Generation`` is one here. Iterating takes the next token."""

    drafted = accepted = 0
    """The device does not say how much it drafted."""

    def __init__(self, lines: Generator[Line] | Iterator[Line], said: Transcript, address: str) -> None:
        self._lines, self._said, self._address = lines, said, address

    @property
    def finish(self) -> Finish | None:
        """Why it ended, None until then."""
        return self._said.finish

    def __next__(self) -> Emitted:
        """Take the next token."""
        if self._said.finish:
            raise StopIteration
        for line in self._lines:
            if isinstance(line, Token):
                return Emitted(line.id, self._said.add(line.id))
        raise LabError(f"{self._address}: the answer broke off", "run again")

    def close(self) -> None:
        """Cancel it."""
        self._said.cancel()


@contextmanager
def answering_on(
    address: str,
    bundle: Bundle,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    threads: int | None = None,
    small_memory: bool = False,
    progress: Progress = silent,
) -> Iterator[Answering]:
    """Continue a prompt on a device. The block begins when the model is loaded there; at its end the run is ended.

    Args:
        address: the device's.
        bundle: the opened bundle.
        tokenizer: the bundle's; texts stay here, only token ids travel.
        prompt: token ids.
        sampling: as for ``generate``.
        threads: as for load_runner.
        small_memory: as for load_runner.
        progress: called with the bytes pushed.

    Raises:
        LabError: as for bench_on.
    """
    from edgekit.run.generation import Transcript

    context = bundle.manifest.context_length
    most = context - len(prompt) if sampling.max_new_tokens is None else sampling.max_new_tokens
    task = Task(
        "generate",
        "",
        threads=threads,
        small_memory=small_memory,
        tokens=tuple(prompt),
        sampling=sampling,
        max_tokens=max(1, most),
        stop=tuple(sorted(tokenizer.eos_ids)),
    )
    with held_device(address, progress) as device:
        folder = device.bring(bundle, min(context, len(prompt) + most), small_memory=small_memory)
        lines = device.lines(replace(task, bundle=folder), pace=AT_ONCE)
        try:
            for line in lines:
                if isinstance(line, Mark) and line.name == "load end":
                    break
            yield Answering(lines, Transcript(tokenizer, sampling, context - len(prompt)), address)
        finally:
            lines.close()
