"""open_bundle trusts nothing: each way a bundle can be damaged is named."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import SCHEMA, open_bundle, record
from edgekit.bundle.manifest import MAX_TEXT
from edgekit.errors import BundleError
from edgekit.types import Bundle, Interval, Quality

QUALITY = Quality(
    kld_mean=Interval(0.1, 0.05, 0.2),
    kld_p99=Interval(1.0, 0.9, 1.1),
    kld_p999=Interval(2.0, 1.9, 2.1),
    top1=Interval(0.9, 0.8, 0.95),
    ppl_ratio=Interval(1.1, 1.0, 1.2),
    ppl=11.0,
    reference_ppl=10.0,
    reference="fp32",
    text="topics",
    text_sha256="0" * 64,
    window=512,
    tokens=4096,
    top_k=64,
    runtime="onnxruntime",
    accuracy_level=0,
)


@pytest.fixture
def bundle(tmp_path: Path, build: Callable[..., Bundle]) -> Bundle:
    return build(tmp_path / "out")


def rewrite(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle.path / "edgekit.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def refusal(path: Path, *, check: bool = True) -> BundleError:
    with pytest.raises(BundleError) as caught:
        open_bundle(path, check=check)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    "name", ["onnx/model_q4.onnx_data", "onnx/model_q4.onnx", "config.json", "chat_template.jinja"]
)
def test_a_changed_byte_is_found_and_named(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"{name} has changed: its sha256 is" in refusal(bundle.path).message
    assert open_bundle(bundle.path, check=False) == bundle


@pytest.mark.parametrize("check", [True, False])
def test_another_size_is_found_without_reading(bundle: Bundle, check: bool) -> None:
    path = bundle.path / "onnx" / "model_q4.onnx_data"
    path.write_bytes(path.read_bytes()[:-1])
    message = refusal(bundle.path, check=check).message
    assert "onnx/model_q4.onnx_data has changed: it has 7,159 bytes, not 7,160" in message


@pytest.mark.parametrize("check", [True, False])
def test_a_missing_file_is_named(bundle: Bundle, check: bool) -> None:
    (bundle.path / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refusal(bundle.path, check=check).message


def test_an_added_file_is_named(bundle: Bundle) -> None:
    (bundle.path / "onnx" / "model.onnx").write_text("x")
    assert "onnx/model.onnx is not part of the bundle" in refusal(bundle.path).message


def test_hidden_files_of_the_system_are_ignored(bundle: Bundle) -> None:
    (bundle.path / ".DS_Store").write_text("x")
    assert open_bundle(bundle.path) == bundle


def test_a_newer_schema_says_who_wrote_it(bundle: Bundle) -> None:
    rewrite(bundle, lambda d: d.update(schema=SCHEMA + 1, edgekit="9.9", something="new"))
    error = refusal(bundle.path)
    assert f"written by edgekit 9.9 with schema {SCHEMA + 1}; this edgekit reads up to {SCHEMA}" in error.message
    assert "upgrade" in error.hint


@pytest.mark.parametrize("schema", [SCHEMA - 1, 1, 0, -1])
def test_an_older_schema_says_what_to_do(bundle: Bundle, schema: int) -> None:
    rewrite(bundle, lambda d: d.update(schema=schema, edgekit="0.0.9"))
    error = refusal(bundle.path)
    assert f"written by edgekit 0.0.9 with schema {schema}; this edgekit reads only {SCHEMA}" in error.message
    assert error.hint.startswith("rebuild the bundle")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "onnx/../../outside", "..\\outside", "C:outside", ""])
@pytest.mark.parametrize("check", [True, False])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Bundle, name: str, check: bool) -> None:
    (bundle.path.parent / "outside").write_bytes(b"")
    rewrite(bundle, lambda d: d["files"][0].update(path=name, bytes=0))
    assert f"the file name {name!r} is not a path inside the bundle" in refusal(bundle.path, check=check).message


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Bundle) -> None:
    path = bundle.path / "tokenizer.json"
    outside = bundle.path.parent / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    assert "tokenizer.json is a link that leaves the bundle" in refusal(bundle.path).message


def test_the_graph_must_be_a_file_of_the_bundle(bundle: Bundle) -> None:
    rewrite(bundle, lambda d: d.update(graph="../model.onnx"))
    assert "graph: '../model.onnx' is not one of the bundle's files" in refusal(bundle.path).message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("recipe"), "recipe"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d["spec"].update(layers="two"), "$.spec.layers"),
        (lambda d: d.update(schema="1"), "'schema' must be a whole number, not '1'"),
        (lambda d: d.update(schema=True), "'schema' must be a whole number, not True"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(bundle, change)
    assert message in refusal(bundle.path).message


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000])
def test_a_broken_manifest_is_refused(bundle: Bundle, text: str) -> None:
    (bundle.path / "edgekit.json").write_text(text)
    assert "edgekit.json" in refusal(bundle.path).message


def test_a_text_without_end_is_refused_before_it_is_hashed(bundle: Bundle) -> None:
    manifest = bundle.path / "edgekit.json"
    document = json.loads(manifest.read_text())
    (entry,) = (file for file in document["files"] if file["path"] == "config.json")
    entry["bytes"] = MAX_TEXT + 1
    os.truncate(bundle.path / "config.json", MAX_TEXT + 1)
    manifest.write_text(json.dumps(document))
    assert "config.json has 67,108,865 bytes, at most 67,108,864 are read" in refusal(bundle.path).message


def test_not_a_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        error = refusal(path)
        assert "not a bundle: no edgekit.json" in error.message
        assert "edgekit build" in error.hint


def test_measurements_are_recorded_and_the_bundle_keeps_its_hash(bundle: Bundle) -> None:
    after = record(bundle, quality=QUALITY)
    assert after.manifest == replace(bundle.manifest, quality=QUALITY)
    assert open_bundle(bundle.path) == after
    assert after.sha256 == bundle.sha256
    assert record(after).manifest.quality == QUALITY
    assert not list(bundle.path.glob(".edgekit.json*"))


def test_progress_counts_the_bytes_hashed(bundle: Bundle) -> None:
    said: list[tuple[int, int]] = []
    open_bundle(bundle.path, progress=lambda task, done, total, unit="B": said.append((done, total)))
    assert said[-1] == (bundle.manifest.bytes, bundle.manifest.bytes)
