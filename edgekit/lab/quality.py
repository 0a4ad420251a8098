"""The quality of a bundle by a device's own kernels: logits come from there, and are compared here."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import measure
from edgekit.errors import EdgekitError, LabError, LinkLost
from edgekit.lab.driver.device import LONGEST, read_line
from edgekit.lab.job import find
from edgekit.lab.remote import held_device
from edgekit.run import Tokenizer
from edgekit.types import Check, Progress, Task, Verification, silent
from edgekit.types.lab import Failed, Hello
from edgekit.verify.bundle import NO_REFERENCE, check_files, find_reference, judge, limits_of, open_source
from edgekit.verify.text import PASS_SOURCE

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from edgekit.lab.driver.device import Device

TOKENS, WINDOW = 1024, 128
"""Tokens to score on a device, and per window; a logit is sent as 4 bytes."""


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
