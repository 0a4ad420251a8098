"""Verify a bundle: files, source, tokenizer, graph, weights, quality, and its graphs for an NPU."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgekit import measure
from edgekit.build.pipeline import build_bundle, draw
from edgekit.bundle import check_signature, open_bundle
from edgekit.bundle.reading import count_operators, read_initializers
from edgekit.errors import BundleError, ConfigError, EdgekitError
from edgekit.host.cache import cache_folder, make_own, require_own
from edgekit.host.origins import find_origin
from edgekit.host.processor import processor_class
from edgekit.run import Tokenizer, default_settings, load_runner
from edgekit.source import complete_export, fingerprint, open_model, spec_changes
from edgekit.types import (
    Bundle,
    Check,
    Checkpoint,
    NpuBuild,
    Precision,
    Progress,
    Quality,
    Verification,
    silent,
)
from edgekit.verify.decode import check_decode
from edgekit.verify.text import NO_SOURCE, PASS_SOURCE, REBUILD, check_text
from edgekit.verify.weights import expected_error, weight_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgekit.build.pipeline import Exporter
    from edgekit.measure import Reference, Text
    from edgekit.run import OnnxRunner
    from edgekit.verify.npu import OnEmulator


@dataclass(frozen=True)
class Limits:
    """The worst mean KL divergence (nats) and top-1 agreement that pass."""

    max_kld: float
    min_top1: float


@dataclass(frozen=True)
class _Request:
    """What to measure quality on; if ``asked``, a missing reference is a failure."""

    text: Text
    tokens: int
    window: int
    limits: Limits
    asked: bool


TOKENS = 4096
WINDOW = 512

LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(1e-5, 0.999),
    "fp16": Limits(1e-3, 0.98),
    "int8": Limits(0.01, 0.95),
    "int4": Limits(0.5, 0.6),
}


_SAMPLE = 12

NO_REFERENCE = "neither the source checkpoint nor a cached FP32 reference is available to compare with"


def verify_bundle(
    bundle: Bundle | Path | str,
    *,
    source: str | None = None,
    text: Path | str | None = None,
    tokens: int = TOKENS,
    window: int = WINDOW,
    max_kld: float | None = None,
    min_top1: float | None = None,
    npu: OnEmulator | None = None,
    keys: Sequence[bytes] = (),
    progress: Progress = silent,
) -> Verification:
    """Verify a bundle. A check that cannot be made is skipped, or fails if an argument asked for it.

    Args:
        bundle: the bundle or its folder.
        source: the checkpoint it was built from; by default where it was when this machine built the bundle, or its
            hub id or packaged name, without network.
        text: a UTF-8 file to measure quality on; by default CPython's help topics.
        tokens: tokens to score, rounded up to whole windows.
        window: tokens per window, at most the model's context.
        max_kld: highest mean KL divergence that passes; by default by precision (LIMITS).
        min_top1: lowest top-1 agreement that passes; by default by precision.
        npu: what to run on the NPU's emulator; by default as in a build, on ``text``.
        keys: public keys (``bundle.load_keys``), one of which must have signed the bundle before anything is run.
        progress: called while hashing, building and scoring.

    Raises:
        MeasureError: the text cannot be read or is too short.
        ConfigError: ``npu`` was passed for a bundle without NPU graphs.
    """
    path = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    chosen = measure.read_text(Path(text)) if text else measure.embedded_text()
    opened, checks = check_files(path, progress, keys)
    if opened is None:
        return Verification(str(path), checks)
    if npu and not opened.manifest.npus:
        raise ConfigError(
            f"{path} has no graphs for an NPU", "build it for a device with one: see `edgekit targets list`"
        )
    limits = limits_of(opened, max_kld, min_top1)
    asked = source is not None or max_kld is not None or min_top1 is not None
    request = _Request(chosen, tokens, window, limits, asked)
    checkpoint, found = open_source(opened, source, asked, progress)
    checks += (found, *check_text(opened, checkpoint))
    quality, computed = _check_computing(opened, checkpoint, request, progress)
    checks += computed
    npus: tuple[NpuBuild, ...] = ()
    if opened.manifest.npus:
        from edgekit.verify.npu import OnEmulator, verify_npus

        binaries, npus = verify_npus(
            opened, checkpoint, npu or OnEmulator(), text=chosen if text else None, progress=progress
        )
        checks += binaries
    return Verification(str(path), checks, quality, npus=npus)


def _check_computing(
    bundle: Bundle, checkpoint: Checkpoint | None, request: _Request, progress: Progress
) -> tuple[Quality | None, tuple[Check, ...]]:
    """Check the CPU graph: its structure, its arithmetic and its quality."""
    try:
        # Default settings: quality must not depend on how this machine was tuned.
        runner = load_runner(bundle, settings=default_settings(bundle.manifest))
    except EdgekitError as error:
        return None, (Check("graph", "fail", error.message, error.hint),)
    try:
        checks = (
            _check_graph(bundle, runner),
            _check_arithmetic(bundle, runner),
            *check_decode(bundle, runner, request.tokens),
            _check_weights(bundle, checkpoint),
        )
        quality, check = _check_quality(bundle, runner, checkpoint, request, progress)
    finally:
        runner.close()
    return quality, (*checks, check)


def limits_of(bundle: Bundle, max_kld: float | None, min_top1: float | None) -> Limits:
    """The given limits, with defaults by the bundle's precision."""
    usual = LIMITS[bundle.manifest.recipe.precision]
    return Limits(
        usual.max_kld if max_kld is None else max_kld,
        usual.min_top1 if min_top1 is None else min_top1,
    )


def check_files(path: Path, progress: Progress, keys: Sequence[bytes] = ()) -> tuple[Bundle | None, tuple[Check, ...]]:
    """Open a bundle, None if the check of its manifest, files or, with ``keys``, signature fails."""
    try:
        bundle = open_bundle(path, check=False)
    except EdgekitError as error:
        return None, (Check("manifest", "fail", error.message, error.hint),)
    manifest = bundle.manifest
    what = f"{manifest.recipe.precision} of {manifest.provenance.id}"
    schema = Check("manifest", "pass", f"schema {manifest.schema}, {what} by edgekit {manifest.edgekit}")
    try:
        open_bundle(path, check=True, progress=progress)
    except EdgekitError as error:
        return None, (schema, Check("files", "fail", error.message, error.hint))
    detail = f"{len(manifest.files)} files, {manifest.bytes:,} bytes; every sha256 matches the manifest"
    files = Check("files", "pass", detail)
    if not keys:
        return bundle, (schema, files)
    try:
        detail = f"by {check_signature(bundle, keys)}, over the manifest with every file's sha256"
    except BundleError as error:
        return None, (schema, files, Check("signature", "fail", error.message, error.hint))
    return bundle, (schema, files, Check("signature", "pass", detail))


def open_source(bundle: Bundle, source: str | None, asked: bool, progress: Progress) -> tuple[Checkpoint | None, Check]:
    """Open the source checkpoint, None if it is missing or another one."""
    made = bundle.manifest.provenance
    name = source or find_origin(made, bundle.sha256)
    if not name:
        return None, Check("source", "fail" if asked else "skip", f"the location of {made.id} is unknown", PASS_SOURCE)
    try:
        checkpoint = _open(name, _exporter(bundle), offline=source is None, progress=progress)
        found = fingerprint(checkpoint, progress)
    except EdgekitError as error:
        return None, Check("source", "fail" if asked else "skip", error.message, error.hint if source else PASS_SOURCE)
    if found.sha256 != made.sha256:
        detail = f"{name} is another checkpoint: sha256 {found.sha256[:12]}, not {made.sha256[:12]} as in the manifest"
        return None, Check("source", "fail" if asked else "skip", detail, PASS_SOURCE)
    if changes := spec_changes(bundle.manifest.spec, checkpoint.spec):
        detail = f"{name} has the bundle's weights, but another configuration: {'; '.join(changes)}"
        return None, Check("source", "fail" if asked else "skip", detail, f"{PASS_SOURCE}, or {REBUILD}")
    return checkpoint, Check("source", "pass", f"{name}, sha256 {made.sha256[:12]} as in the manifest")


def _exporter(bundle: Bundle) -> Exporter:
    return "optimum" if bundle.manifest.exporter == "optimum" else "native"


def _open(name: str, exporter: Exporter, *, offline: bool, progress: Progress) -> Checkpoint:
    if exporter == "native":
        return open_model(name, offline=offline, progress=progress)
    from edgekit.graph import export_with_optimum

    return complete_export(export_with_optimum(name, offline=offline, progress=progress).checkpoint)


def _check_weights(bundle: Bundle, checkpoint: Checkpoint | None) -> Check:
    """Read some weights back from the shipped file and compare their error with the manifest's."""
    if checkpoint is None:
        return Check("weights", "skip", NO_SOURCE, PASS_SOURCE)
    stored = read_initializers(bundle)
    manifest = bundle.manifest
    weights = checkpoint.weights
    if manifest.recipe.smooth or manifest.recipe.rotate:
        _, weights = draw(checkpoint, manifest.recipe, manifest.cpu_target.opset)
    entries = [e for e in bundle.manifest.tensors if not e.shared_with]
    sample = entries[:: -(-len(entries) // _SAMPLE)]
    worst, wrong = 0.0, []
    for entry in sample:
        error, expected = weight_error(stored, entry, weights), expected_error(entry)
        if error is None or error > expected * 1.001 + 1e-7:
            found = "not in the graph" if error is None else f"error {error:.2e}, built with {expected:.2e}"
            wrong.append(f"{entry.name} ({found})")
        else:
            worst = max(worst, error)
    if wrong:
        return Check("weights", "fail", ", ".join(wrong), REBUILD)
    detail = f"{len(sample)} of {len(entries)} read back, with the error they were built with; largest {worst:.2e}"
    return Check("weights", "pass", detail)


def _check_graph(bundle: Bundle, runner: OnnxRunner) -> Check:
    """Check inputs and outputs, and that the target has every operator."""
    layers = range(bundle.manifest.spec.layers)
    cache = [f"{i}.{kind}" for i in layers for kind in ("key", "value")]
    past, present = ({f"{side}.{c}" for c in cache} for side in ("past_key_values", "present"))
    inputs, outputs = set(runner.info.inputs), set(runner.info.outputs)
    allowed = past | {"input_ids", "attention_mask", "position_ids"}
    wrong = sorted((inputs - allowed) | ((past | {"input_ids"}) - inputs) | (outputs ^ (present | {"logits"})))
    if wrong:
        return Check("graph", "fail", f"unexpected or missing inputs or outputs: {', '.join(wrong)}", REBUILD)
    if runner.vocab_size != bundle.manifest.spec.vocab_size:
        detail = f"{runner.vocab_size} logits for a vocabulary of {bundle.manifest.spec.vocab_size}"
        return Check("graph", "fail", detail, REBUILD)
    operators = count_operators(bundle)
    lacking = sorted({name for _, name in operators if f"op:{name}" in bundle.manifest.cpu_target.lacks})
    if lacking:
        target = bundle.manifest.cpu_target.name
        return Check("graph", "fail", f"target {target} lacks {', '.join(lacking)}", REBUILD)
    domains = sorted({domain or "ai.onnx" for domain, _ in operators})
    nodes = sum(operators.values())
    return Check("graph", "pass", f"loads; inputs and outputs as expected; {nodes} nodes of {', '.join(domains)}")


def _check_arithmetic(bundle: Bundle, runner: OnnxRunner) -> Check:
    """Report what makes matmuls exact here, and where the recorded quality was measured."""
    here, recorded = processor_class() or "a processor of an unknown class", bundle.manifest.quality
    detail = f"{here}: {runner.arithmetic}"
    if recorded and recorded.processor_class != processor_class():
        there = recorded.processor_class or "a processor of an unrecorded class"
        detail += f"; the recorded quality was measured on {there}"
    return Check("arithmetic", "pass", detail)


def _check_quality(
    bundle: Bundle, runner: OnnxRunner, checkpoint: Checkpoint | None, request: _Request, progress: Progress
) -> tuple[Quality | None, Check]:
    manifest, text = bundle.manifest, request.text
    window = min(request.window, runner.context_length)
    windows = measure.cut_windows(text, Tokenizer.of(bundle).encode, window, request.tokens)
    try:
        reference = find_reference(bundle, checkpoint, text, windows, progress)
    except EdgekitError as error:
        return None, Check("quality", "fail", f"no FP32 reference: {error.message}", error.hint)
    if reference is None:
        return None, Check("quality", "fail" if request.asked else "skip", NO_REFERENCE, PASS_SOURCE)
    try:
        quality = measure.score(
            runner,
            reference,
            text=text.name,
            text_sha256=text.sha256,
            reference_name=f"{manifest.provenance.id} in FP32, sha256 {manifest.provenance.sha256[:12]}",
            runtime=" ".join(runner.info.runtime[0]),
            accuracy_level=manifest.accuracy_level,
            processor_class=processor_class(),
            progress=progress,
        )
    except EdgekitError as error:
        return None, Check("quality", "fail", error.message, error.hint)
    return quality, judge(quality, request.limits)


def judge(quality: Quality, limits: Limits) -> Check:
    """Compare quality with the limits."""
    kld, top1 = quality.kld_mean, quality.top1
    passed = kld.value <= limits.max_kld and top1.value >= limits.min_top1
    detail = (
        f"KLD {kld.value:.3g} [{kld.low:.3g}, {kld.high:.3g}] (limit {limits.max_kld:g}), "
        f"top-1 {top1.value:.1%} [{top1.low:.1%}, {top1.high:.1%}] (limit {limits.min_top1:.1%}), "
        f"perplexity x {quality.ppl_ratio.value:.4f}; {quality.tokens} tokens of {quality.text}"
    )
    hint = (
        ""
        if passed
        else "build with more bits (`edgekit build --precision int8`), or pass other `max_kld` and `min_top1`"
    )
    return Check("quality", "pass" if passed else "fail", detail, hint)


def find_reference(
    bundle: Bundle, checkpoint: Checkpoint | None, text: Text, windows: NDArray[np.int64], progress: Progress
) -> Reference | None:
    """Load the FP32 reference from the cache, or make it with a temporary FP32 bundle of the source."""
    key = measure.reference_key(measure.source_key(bundle.manifest), text.sha256, windows)
    path = require_own(cache_folder() / "references" / f"{key}.npz")
    reference = measure.load_reference(path)
    if reference is None and checkpoint is not None:
        with _fp32_runner(bundle, checkpoint, progress) as runner:
            reference = measure.make_reference(runner, windows, progress=progress)
        make_own(path.parent)
        measure.save_reference(reference, path)
    return reference


@contextmanager
def _fp32_runner(bundle: Bundle, checkpoint: Checkpoint, progress: Progress) -> Iterator[OnnxRunner]:
    # Not in /tmp, which is often in memory: an FP32 model is large.
    with TemporaryDirectory(prefix="fp32-", dir=make_own(cache_folder())) as folder:
        model = checkpoint.provenance.location or checkpoint.provenance.id
        made = build_bundle(
            model,
            target="cpu",
            precision="fp32",
            out=Path(folder) / "bundle",
            exporter=_exporter(bundle),
            progress=progress,
        )
        runner = load_runner(made)
        try:
            yield runner
        finally:
            runner.close()
