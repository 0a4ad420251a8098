"""The reference for the benchmarks' quality numbers: an FP32 model's predictions on a text."""

from dataclasses import dataclass
from pathlib import Path

from edgekit import build_bundle, load_runner
from edgekit.measure import (
    Reference,
    Text,
    cut_windows,
    embedded_text,
    load_reference,
    make_reference,
    read_text,
    reference_key,
    save_reference,
    source_key,
)
from edgekit.run import Tokenizer
from edgekit.types import Bundle


@dataclass(frozen=True)
class Yardstick:
    """A text, the FP32 model's predictions on it, and the model's bundle."""

    text: Text
    reference: Reference
    bundle: Bundle


def make_yardstick(model: str, out: Path, text: Path | None, window: int, tokens: int) -> Yardstick:
    """Build a model in FP32 at ``out`` and run it over windows of a text; predictions are cached next to the bundle.

    Args:
        model: as for `build_bundle`.
        out: the FP32 bundle's folder, which is replaced.
        text: a file; by default CPython's documentation.
        window: tokens per window, without special tokens.
        tokens: number of tokens in total.
    """
    spoken = read_text(text) if text else embedded_text()
    bundle = build_bundle(model, out=out, precision="fp32", force=True)
    windows = cut_windows(spoken, Tokenizer.of(bundle).encode, window, tokens)
    kept = out.parent / f"predictions-{reference_key(source_key(bundle.manifest), spoken.sha256, windows)}.npz"
    reference = load_reference(kept)
    if reference is None:
        runner = load_runner(bundle)
        reference = make_reference(runner, windows)
        runner.close()
        save_reference(reference, kept)
    return Yardstick(spoken, reference, bundle)
