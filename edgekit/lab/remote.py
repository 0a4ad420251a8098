"""``bench``, ``run`` and ``verify`` on another device: the same numbers as here, from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.errors import EdgekitError, LabError, LinkLost
from edgekit.lab.driver.device import LONGEST, Device, open_device, read_line
from edgekit.lab.job import find
from edgekit.lab.lease import lease
from edgekit.lab.transport import connect
from edgekit.run import Tokenizer
from edgekit.run.generation import Transcript
from edgekit.types import Bundle, Check, Emitted, Progress, Task, Verification, silent
from edgekit.types.lab import Done, Failed, Hello, Mark, Token
from edgekit.verify.bundle import NO_REFERENCE, check_files, find_reference, judge, limits_of, open_source
from edgekit.verify.text import PASS_SOURCE

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from edgekit.run import Finish
    from edgekit.types import Measurement, Sampling
    from edgekit.types.lab import Line

TOKENS, WINDOW = 1024, 128
"""Tokens to score on a device, and per window; a logit is sent as 4 bytes."""

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
        for line in device.lines(replace(task, bundle=folder)):
            if isinstance(line, Mark) and line.name.startswith(("pp", "tg")) and line.name.endswith("end"):
                done += 1
                progress(f"measuring on {address}", min(done, total), total, "workloads")
            if isinstance(line, Done):
                return _own(line, bundle, address)
    raise LabError(f"{address}: the driver sent no measurement", "run again")


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


class DevicePredictor:
    """A Predictor on a device, for windows that are known beforehand and asked for in their order.

    Attributes:
        hello: what the driver said about itself; after the first window.
    """

    def __init__(self, device: Device, task: Task, windows: Sequence[Sequence[int]], vocab_size: int) -> None:
        """Args: device: with the driver; task: of kind ``logits``; vocab_size: columns of the logits."""
        self._device, self._task = device, task
        self._waiting = [tuple(window) for window in windows]
        self._vocab = vocab_size
        self._frames: Generator[bytes] | None = None
        self._rest = bytearray()
        self.hello: Hello | None = None

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._vocab

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position of the next window.

        Raises:
            LabError: it is not the next one; the driver failed; it sent something else.
            LinkLost: the device did not come back. A link that is found again loses nothing.
        """
        if not self._waiting or tuple(tokens) != self._waiting[0]:
            raise LabError("windows are computed on a device in one order", "pass them as they were announced")
        while True:
            try:
                found = self._take(len(tokens))
            except LinkLost as lost:
                find(self._device.transport, lost)
                self._device.end_all()
                self._frames, self._rest = None, bytearray()
                continue
            del self._waiting[0]
            return found

    def close(self) -> None:
        """End it on the device."""
        if self._frames:
            self._frames.close()

    def _take(self, length: int) -> NDArray[np.float32]:
        if self._frames is None:
            self._frames = self._device.frames(self._task, self._waiting)
        while (head := self._line())[:1] != b"[":
            line = read_line(self._device.address, head)
            if isinstance(line, Failed):
                raise LabError(f"{self._device.address}: {line.message}", line.hint)
            self.hello = line if isinstance(line, Hello) else self.hello
        if head != json.dumps([length, self._vocab]).encode():
            raise LabError(f"{self._device.address}: it sent logits of another shape", "report this, with the device")
        size = 4 * length * self._vocab
        while len(self._rest) < size:
            self._rest += self._more()
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return np.frombuffer(data, "<f4").reshape(length, self._vocab)

    def _line(self) -> bytes:
        while (end := self._rest.find(b"\n")) < 0 and len(self._rest) < LONGEST:
            self._rest += self._more()
        line = bytes(self._rest[:end])
        del self._rest[: end + 1]
        return line

    def _more(self) -> bytes:
        assert self._frames
        data = next(self._frames, b"")
        if not data:
            raise LabError(f"{self._device.address}: the driver ended before the last window", "run again")
        return data


def verify_on(
    address: str,
    bundle: Path | str,
    *,
    source: str | None = None,
    text: Path | str | None = None,
    tokens: int = TOKENS,
    window: int = WINDOW,
    max_kld: float | None = None,
    min_top1: float | None = None,
    keys: Sequence[bytes] = (),
    progress: Progress = silent,
) -> Verification:
    """Measure a bundle's quality with a device's own kernels, against the FP32 source.

    Args:
        address: the device's, as for ``connect``.
        bundle: the bundle or its folder.
        source: as for verify_bundle, like all that follow.
        text: a UTF-8 file.
        tokens: tokens to score.
        window: tokens per window.
        max_kld: highest mean KL divergence that passes.
        min_top1: lowest top-1 agreement that passes.
        keys: public keys, one of which must have signed the bundle.
        progress: called for every window, and with the bytes pushed.

    Raises:
        MeasureError: the text cannot be read or is too short.
        LabError: as for bench_on.
    """
    path = Path(bundle)
    chosen = measure.read_text(Path(text)) if text else measure.embedded_text()
    opened, checks = check_files(path, progress, keys)
    if opened is None:
        return Verification(str(path), checks)
    checkpoint, found = open_source(opened, source, source is not None, progress)
    checks += (found,)
    window = min(window, opened.manifest.context_length)
    windows = measure.cut_windows(chosen, Tokenizer.of(opened).encode, window, tokens)
    try:
        reference = find_reference(opened, checkpoint, chosen, windows, progress)
        missing = NO_REFERENCE
    except EdgekitError as error:
        reference, missing = None, f"no FP32 reference: {error.message}"
    if reference is None:
        return Verification(str(path), (*checks, Check(f"quality on {address}", "fail", missing, PASS_SOURCE)))
    manifest = opened.manifest
    with held_device(address, progress) as device:
        task = Task("logits", device.bring(opened, window))
        with closing(DevicePredictor(device, task, windows.tolist(), manifest.spec.vocab_size)) as predictor:
            scores = measure.compare(predictor, reference, progress=progress)
            hello = predictor.hello
    assert hello
    quality = measure.summarize(
        scores,
        reference,
        text=chosen.name,
        text_sha256=chosen.sha256,
        reference_name=f"{manifest.provenance.id} in FP32, sha256 {manifest.provenance.sha256[:12]}",
        runtime=f"onnxruntime {dict(hello.versions).get('onnxruntime', 'unknown')} on {address}",
        accuracy_level=manifest.accuracy_level,
        processor_class=hello.processor_class,
    )
    kind = Check("device", "info", f"{address}: {hello.processor_class or 'a processor of an unknown class'}")
    check = judge(quality, limits_of(opened, max_kld, min_top1))
    return Verification(str(path), (*checks, kind, check), quality)
