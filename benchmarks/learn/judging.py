"""Score bundles in ONNX Runtime against one model in FP32, on several texts, and on the last words of passages."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit import build_bundle, load_runner, open_bundle
from edgekit.host.processor import processor_class
from edgekit.measure import (
    bootstrap,
    cut_windows,
    load_reference,
    make_reference,
    read_text,
    reference_key,
    save_reference,
    score,
    source_key,
)
from edgekit.run import default_settings
from edgekit.source import fingerprint, open_model, source_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edgekit.measure import Reference, Text
    from edgekit.run import OnnxRunner
    from edgekit.types import Bundle, Quality
    from edgekit.types.interval import Interval


@dataclass(frozen=True)
class Protocol:
    """What is scored: texts, tokens of each in windows without BOS, and a file of passages with how many of them."""

    texts: tuple[Path, ...]
    tokens: int = 4096
    window: int = 512
    lambada: Path | None = None
    items: int = 200


@dataclass(frozen=True)
class LastWords:
    """The share of passages whose last word the model predicts, all its tokens, with its 95 % interval."""

    asked: int
    right: Interval


class Judge:
    """A model in FP32, and its predictions on the texts. A student is scored against it like any bundle."""

    def __init__(self, source: str, protocol: Protocol, work: Path) -> None:
        """Make the FP32 bundle and its predictions in ``work``, or take those that are there."""
        checkpoint = open_model(source)
        origin = fingerprint(checkpoint)
        self.sha256, self.protocol = origin.sha256, protocol
        self.name = f"{origin.id} in FP32, sha256 {origin.sha256[:12]}"
        self._encode = source_tokenizer(checkpoint)
        self.fp32 = _fp32(source, work / f"fp32-{origin.sha256[:12]}")
        texts = [read_text(path) for path in protocol.texts]
        self._known = [(text, self._predictions(text, work)) for text in texts]
        self._passages = _passages(protocol, self._encode) if protocol.lambada else []

    def score(self, bundle: Bundle) -> tuple[tuple[Quality, ...], LastWords | None]:
        """The shipped file on every text, with the runtime's default settings."""
        with closing(load_runner(bundle, settings=default_settings(bundle.manifest))) as runner:
            qualities = tuple(
                score(
                    runner,
                    reference,
                    text=text.name,
                    text_sha256=text.sha256,
                    reference_name=self.name,
                    runtime=" ".join(runner.info.runtime[0]),
                    accuracy_level=bundle.manifest.accuracy_level,
                    processor_class=processor_class(),
                )
                for text, reference in self._known
            )
            return qualities, _last_words(runner, self._passages) if self._passages else None

    def _predictions(self, text: Text, work: Path) -> Reference:
        windows = cut_windows(text, self._encode, self.protocol.window, self.protocol.tokens)
        path = work / f"{reference_key(source_key(self.fp32.manifest), text.sha256, windows)}.npz"
        reference = load_reference(path)
        if reference is None:
            with closing(load_runner(self.fp32)) as runner:
                reference = make_reference(runner, windows)
            save_reference(reference, path)
        return reference


def _fp32(source: str, out: Path) -> Bundle:
    if out.exists():
        return open_bundle(out)
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    build_bundle(source, out=partial, precision="fp32").path.rename(out)
    return open_bundle(out, check=False)


def _passages(protocol: Protocol, encode: Callable[[str], list[int]]) -> list[tuple[list[int], int]]:
    """Tokens of each passage, and how many of them are the last word's."""
    assert protocol.lambada is not None
    lines = protocol.lambada.read_text(encoding="utf-8").splitlines()[: protocol.items]
    found = []
    for text in (json.loads(line)["text"].strip() for line in lines):
        tokens, context = encode(text), encode(text.rpartition(" ")[0])
        found.append((tokens, len(tokens) - len(context)))
    return found


def _last_words(runner: OnnxRunner, passages: Sequence[tuple[list[int], int]]) -> LastWords:
    right = [
        bool((runner.logits(tokens)[-word - 1 : -1].argmax(axis=-1) == tokens[-word:]).all())
        for tokens, word in passages
    ]
    share = bootstrap(np.array(right, np.float64)[:, None], lambda pool: np.asarray(pool.mean(axis=-1)))
    return LastWords(len(right), share)
