"""What a run gained: two bundles beside each other in ONNX Runtime, position by position, on texts it never saw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit import measure
from edgekit.errors import GateFailed
from edgekit.host.processor import processor_class
from edgekit.measure import Text
from edgekit.run import default_settings, load_runner
from edgekit.source import source_tokenizer
from edgekit.types import silent
from edgekit.types.learning import Gain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgekit.learn.graph import Decoder
    from edgekit.types import Bundle, Checkpoint, Progress

    Scored = tuple[Text, NDArray[np.int64]]

TOKENS = 4096
"""Of the help topics, as ``verify`` scores by default."""

LEAST = 2
"""Windows that an interval needs."""


class TorchPredictor:
    """A decoder in torch as the reference of ``measure``."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.vocab_size = len(decoder.head())

    @torch.no_grad()
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [S, V] of every position."""
        states = self._decoder(torch.tensor([list(tokens)]))[0]
        found: NDArray[np.float32] = (states @ self._decoder.head().T).numpy()
        return found


def judged_on(checkpoint: Checkpoint, held_out: NDArray[np.int64], window: int) -> list[Scored]:
    """The texts that a run is judged on: the beginning of the help topics, and what was held out and never watched."""
    topics = measure.embedded_text()
    texts = [(topics, measure.cut_windows(topics, source_tokenizer(checkpoint), window, TOKENS))]
    if len(held_out) >= LEAST:
        text = Text("text held out from training", held_out.tobytes().hex())
        texts.append((text, held_out[: TOKENS // window]))
    return texts


def measure_gains(
    before: Bundle,
    after: Bundle,
    teacher: TorchPredictor,
    texts: Sequence[Scored],
    *,
    reference: str,
    progress: Progress = silent,
) -> tuple[Gain, ...]:
    """Score two bundles of one model against it.

    Args:
        before: the bundle without the run.
        after: the bundle with it.
        teacher: the model in FP32.
        texts: what to score on, windows [n,S] each.
        reference: the name of the teacher.
        progress: told the windows.
    """
    gains = []
    for text, windows in texts:
        made = measure.make_reference(teacher, windows, progress=progress)
        qualities, klds = [], []
        for bundle in (before, after):
            runner = load_runner(bundle, settings=default_settings(bundle.manifest))
            try:
                scores = measure.compare(runner, made, progress=progress)
                qualities.append(
                    measure.summarize(
                        scores,
                        made,
                        text=text.name,
                        text_sha256=text.sha256,
                        reference_name=reference,
                        runtime=" ".join(runner.info.runtime[0]),
                        accuracy_level=bundle.manifest.accuracy_level,
                        processor_class=processor_class(),
                    )
                )
            finally:
                runner.close()
            klds.append(scores.kld)
        gained = measure.bootstrap(klds[0] - klds[1], lambda pool: np.asarray(pool.mean(axis=-1)))
        gains.append(Gain(qualities[0], qualities[1], gained))
    return tuple(gains)


def require_gain(gains: Sequence[Gain]) -> None:
    """Refuse a run that is not better on every text by more than the interval.

    Raises:
        GateFailed: it is not.
    """
    for gain in gains:
        if gain.gained.low <= 0:
            kld = f"{gain.before.kld_mean.value:.4f} before, {gain.after.kld_mean.value:.4f} after"
            interval = f"[{gain.gained.low:.4f}, {gain.gained.high:.4f}]"
            raise GateFailed(
                f"training gained nothing on {gain.after.text}: KLD {kld}, gained {interval} nats",
                "give it more minutes or more text; `edgekit build --calibrate` makes the bundle without it",
            )
