"""Check what a bundle's manifest may contain. A bundle may come from anyone, so it must not control this machine.

``admit`` takes a manifest with valid types and ranges (see record) and rejects session or provider settings that this
installation does not list (see providers), packages to import, paths outside the bundle's files, files that are not
data, and contradictory sizes. A provider's package always comes from this installation, whatever the bundle says.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from edgekit.config.providers import find_provider, wrong_entry, wrong_option, wrong_settings
from edgekit.errors import BundleError
from edgekit.strangers import parse_json, read_plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgekit.types import Calibration, Int8Repack, Manifest, ModelSpec, NpuBuild, Target

DATA = (".bin", ".jinja", ".json", ".mlmodel", ".model", ".onnx", ".onnx_data", ".txt")
"""Allowed suffixes of a bundle's files. Nothing runs or imports files of these types."""

GENAI = "genai_config.json"
"""The configuration of onnxruntime-genai, in a bundle's folder and in each ``npu/<target>``."""

MAX_GENAI = 1 << 20
"""Maximum size of genai_config.json in bytes."""

_GENAI_KEYS = frozenset(
    (
        *("model", "type", "bos_token_id", "eos_token_id"),
        *("pad_token_id", "vocab_size", "context_length", "decoder"),
        *("session_options", "log_id", "provider_options", "intra_op_num_threads"),
        *("filename", "head_size", "hidden_size", "num_attention_heads"),
        *("num_hidden_layers", "num_key_value_heads", "sliding_window", "window_size"),
        *("cache_slack", "slide_key_value_cache", "slide_inputs", "inputs"),
        *("outputs", "input_ids", "attention_mask", "position_ids"),
        *("past_key_names", "past_value_names", "logits", "present_key_names"),
        *("present_value_names", "pipeline", "run_on_prompt", "run_on_token_gen"),
        *("search", "do_sample", "max_length", "min_length"),
        *("num_beams", "num_return_sequences", "past_present_share_buffer", "repetition_penalty"),
        *("temperature", "top_k", "top_p"),
    )
)
"""All keys that edgekit writes there (see interop and pipeline). Others can name libraries, adapters and files."""

_STAGE = re.compile(r"model\.decoder\.pipeline\[\d+\]")
"""The place whose keys are names of stages."""

_HINT = "do not use this bundle unless you trust who made it; build your own with `edgekit build`"


def admit(path: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with provider packages replaced by this installation's own.

    Args:
        path: edgekit.json, for messages.
        manifest: as it was read.

    Raises:
        BundleError: it contains something that a bundle may not; the message has the key.
    """
    for key, problem in _problems(manifest):
        raise BundleError(f"{path}: {key}: {problem}", _HINT)
    return replace(
        manifest,
        target=_own(manifest.target),
        npus=tuple(replace(build, target=_own(build.target)) for build in manifest.npus),
    )


def admit_runtime_config(path: Path, name: str, manifest: Manifest) -> None:
    """Reject a genai_config.json with more than edgekit writes there, since its options reach another runtime.

    Args:
        path: the bundle's folder.
        name: the file, relative to it.
        manifest: the bundle's manifest.

    Raises:
        BundleError: not JSON; a key, an option or a file that edgekit would not have written.
    """
    data = read_plain(path / name, MAX_GENAI, error=BundleError, within=(path,))
    config = parse_json(data, str(path / name), error=BundleError)
    folder = PurePosixPath(name).parent
    build = next((b for b in manifest.npus if PurePosixPath(b.folder) == folder), None)
    files = {entry.path for entry in manifest.files}
    for key, problem in _runtime_problems(config, "", build):
        raise BundleError(f"{path / name}: {key}: {problem}", _HINT)
    for file in _filenames(config):
        if not isinstance(file, str) or (folder / file).as_posix() not in files:
            raise BundleError(f"{path / name}: filename: {file!r} is not one of the bundle's files", _HINT)


def _runtime_problems(value: Any, key: str, build: NpuBuild | None) -> Iterator[tuple[str, str]]:
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _runtime_problems(item, f"{key}[{i}]", build)
    if not isinstance(value, dict):
        return
    for name, item in value.items():
        at = f"{key}.{name}".lstrip(".")
        if name == "provider_options":
            yield from ((at, why) for why in _provider_problems(item, build))
        elif name not in _GENAI_KEYS and not _STAGE.fullmatch(key):
            yield at, "edgekit does not write this key"
        else:
            yield from _runtime_problems(item, at, build)


def _provider_problems(given: Any, build: NpuBuild | None) -> Iterator[str]:
    runtime = build.target.npu.runtime if build and build.target.npu else None
    entries = given if isinstance(given, list) else [given]
    for entry in entries:
        if not isinstance(entry, dict) or not all(isinstance(o, dict) for o in entry.values()):
            yield "not a list of providers with their options"
            continue
        for name, options in entry.items():
            if build is None or runtime is None or name != runtime.genai:
                yield f"{name!r} is not the provider that the bundle was built for"
            elif not all(isinstance(v, str) for v in options.values()):
                yield "an option is not a string"
            elif why := wrong_option(build.target.provider, tuple(options.items()), on_device=True):
                yield why


def _filenames(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _filenames(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from [item] if name == "filename" else _filenames(item)


def _own(target: Target) -> Target:
    if target.npu is None or target.npu.plugin is None:
        return target
    known = find_provider(target.provider)
    return replace(target, npu=replace(target.npu, plugin=known.plugin if known else None))


def _problems(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield from _files(manifest)
    yield from _shape(manifest.spec)
    targets = [("target", manifest.target), ("fallback", manifest.fallback)]
    targets += [(f"npus[{i}].target", build.target) for i, build in enumerate(manifest.npus)]
    for key, target in targets:
        if target is not None:
            yield from ((f"{key}.{where}", why) for where, why in wrong_settings(target))
            yield from _plugin(key, target)
    for i, build in enumerate(manifest.npus):
        yield from ((f"npus[{i}].{key}", problem) for key, problem in _npu(build, manifest))
    if manifest.arm:
        scores = [*manifest.arm.scores, *([manifest.arm.prompts] if manifest.arm.prompts else [])]
        for kernels in (manifest.arm.chosen, *(score.kernels for score in scores)):
            if why := wrong_entry(kernels.entries):
                yield "arm.chosen.entries" if kernels == manifest.arm.chosen else "arm.scores", why
    if manifest.prefill:
        yield from _expansions(manifest.prefill.expansions, manifest)
    if manifest.calibration:
        yield from _calibration(manifest.calibration)


def _files(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Check that each file is data and listed once, and that each graph is one of the files."""
    paths = [entry.path for entry in manifest.files]
    names = {path.casefold() for path in paths}
    if len(names) < len(paths):
        yield "files", "two files have the same name"
    for i, path in enumerate(paths):
        if PurePosixPath(path).suffix not in DATA:
            yield f"files[{i}].path", f"{path!r} is not a type of file that bundles contain"
    if manifest.graph not in paths:
        yield "graph", f"{manifest.graph!r} is not one of the bundle's files"
    if manifest.prefill and manifest.prefill.graph not in paths:
        yield "prefill.graph", f"{manifest.prefill.graph!r} is not one of the bundle's files"


def _shape(spec: ModelSpec) -> Iterator[tuple[str, str]]:
    if not len(spec.windows) == len(spec.rotary) == spec.layers:
        yield "spec.layers", f"{spec.layers} layers with {len(spec.windows)} windows and {len(spec.rotary)} rotary"
    if spec.heads % spec.kv_heads:
        yield "spec.kv_heads", f"{spec.kv_heads} does not divide the {spec.heads} heads"
    if spec.rope.dim > spec.head_dim:
        yield "spec.rope.dim", f"{spec.rope.dim} is more than the head_dim of {spec.head_dim}"
    tokens = (spec.bos_token_id, spec.pad_token_id, *spec.eos_token_ids)
    if any(token is not None and token >= spec.vocab_size for token in tokens):
        yield "spec", f"a special token is outside the vocabulary of {spec.vocab_size}"


def _plugin(key: str, target: Target) -> Iterator[tuple[str, str]]:
    """Check that a provider's package is the same as this installation's, which decides what is imported."""
    said = target.npu.plugin if target.npu else None
    if said is None:
        return
    known = find_provider(target.provider)
    own = known.plugin if known else None
    for field in ("module", "paths"):
        if own is None or getattr(said, field) != getattr(own, field):
            problem = f"{getattr(said, field)!r} differs from this edgekit's for {target.provider}"
            yield f"{key}.npu.plugin.{field}", problem


def _npu(build: NpuBuild, manifest: Manifest) -> Iterator[tuple[str, str]]:
    if why := wrong_option(build.target.provider, build.options):
        yield "options", why
    if why := wrong_entry(build.session):
        yield "session", why
    paths = {entry.path for entry in manifest.files}
    optional = (("placement", build.placement), ("usability", build.usability))
    named = [("host", build.host), *((key, path) for key, path in optional if path)]
    for i, graph in enumerate(build.graphs):
        named += [(f"graphs[{i}].{field}", getattr(graph, field)) for field in ("source", "context", "binary")]
    named += [(f"static[{i}].path", graph.path) for i, graph in enumerate(build.static)]
    for key, name in named:
        if name not in paths:
            yield key, f"{name!r} is not one of the bundle's files"
    if build.package and not any(path.startswith(f"{build.package}/") for path in paths):
        yield "package", f"{build.package!r} contains none of the bundle's files"


def _expansions(expansions: tuple[Int8Repack, ...], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Check that every region is inside the data file and has the size that its shape needs."""
    data = next((f.bytes for f in manifest.files if f.path == f"{manifest.graph}_data"), 0)
    if len({e.name for e in expansions}) < len(expansions) or sum(e.codes.bytes for e in expansions) > data:
        yield "prefill.expansions", "entries are duplicated or overlap"
    for i, e in enumerate(expansions):
        key = f"prefill.expansions[{i}]"
        if e.bits not in (2, 4, 8) or e.block_size < 16 or e.block_size & (e.block_size - 1):
            yield key, f"{e.bits} bits in blocks of {e.block_size} is not supported"
            continue
        blocks = -(-e.columns // e.block_size)
        width = 2 if e.half_scales else 4
        zeros = e.rows * -(-blocks * e.bits // 8)
        codes = e.rows * blocks * e.block_size * e.bits // 8
        wanted = [("codes", e.codes, (codes, codes))]
        wanted += [("scales", e.scales, (e.rows * blocks * width, e.rows * width))]
        wanted += [("zeros", e.zeros, (zeros, e.rows * -(-e.bits // 8)))] if e.zeros else []
        for field, region, sizes in wanted:
            if region.bytes not in sizes or region.offset + region.bytes > data:
                problem = f"{region.bytes:,} bytes at {region.offset:,} do not match the shape of {e.name}"
                yield f"{key}.{field}", problem


def _calibration(calibration: Calibration) -> Iterator[tuple[str, str]]:
    scores = [("score", calibration.score)]
    scores += [("prefix.score", calibration.prefix.score)] if calibration.prefix else []
    for key, score in scores:
        if len(score.features) != len(score.weights):
            yield f"calibration.{key}", f"{len(score.features)} features and {len(score.weights)} weights"
        if not score.knots or any(a > c or b > d for (a, b), (c, d) in pairwise(score.knots)):
            yield f"calibration.{key}.knots", "the list is empty or decreasing"
