"""Checkpoints of strangers: numbers beyond their range, files that are none, links that lead out, tensors that lie."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgekit.errors import SourceError
from edgekit.source import open_config_only, open_model, source_stamp, try_tokenizer
from edgekit.source.provenance import require_unchanged
from edgekit.testing import tiny_checkpoint, tiny_config, tiny_weights
from tests.source.ggufs import write_gguf

SHARD = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "m")


def refused(model: Path, *culprits: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_model(str(model))
    assert caught.value.hint
    for culprit in culprits:
        assert culprit in caught.value.message


def edit(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def edit_header(path: Path, change: Any) -> None:
    """Rewrite a shard's header; ``change`` gets it as an object and may give another text."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = change(header) or json.dumps(header)
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode() + data[8 + length :])


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 2_000_000),
        ("num_attention_heads", 2**40),
        ("num_key_value_heads", 2**40),
        ("hidden_size", 2**40),
        ("vocab_size", 2**40),
        ("intermediate_size", 10**400),
        ("head_dim", 2**40),
        ("max_position_embeddings", 2**40),
        ("max_position_embeddings", 2**24),
        ("rms_norm_eps", 1e300),
        ("rms_norm_eps", 10**400),
        ("rope_theta", 0),
        ("rope_theta", True),
        ("eos_token_id", 384),
        ("eos_token_id", ["2"]),
        ("bos_token_id", 10**30),
        ("pad_token_id", 2.5),
        ("hidden_act", ["silu"]),
        ("model_type", {"a": 1}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2**70}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "truncate": 3}),
        ("sliding_window", {}),
    ],
)
def test_numbers_beyond_their_range(folder: Path, key: str, value: object) -> None:
    if key == "sliding_window":
        edit(folder / "config.json", model_type="mistral")
    edit(folder / "config.json", **{key: value})
    if "token" in key:
        (folder / "generation_config.json").unlink()
    refused(folder, str(folder))


def test_numbers_are_refused_without_weights_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(num_hidden_layers=2_000_000)))
    with pytest.raises(SourceError, match="num_hidden_layers") as caught:
        open_config_only(str(tmp_path))
    assert caught.value.hint


def test_layer_types_that_are_no_names(folder: Path) -> None:
    edit(folder / "config.json", model_type="qwen2", use_sliding_window=True, sliding_window=8, layer_types=[[], {}])
    refused(folder, "unknown layer type")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}\x00", b'{"a":' * 5000, b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[]"])
def test_side_files_that_are_no_json_of_ours(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    refused(folder, name)


@pytest.mark.parametrize(
    "entries",
    [
        {"bos_token": 3},
        {"eos_token": {"content": None}},
        {"pad_token": ["x"]},
        {"chat_template": 3},
        {"chat_template": [{"name": 1, "template": "x"}]},
        {"chat_template": "x" * (1 << 21)},
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        {"added_tokens_decoder": {"1": "a"}},
        {"model_max_length": "long"},
        {"tokenizer_class": ["a"]},
    ],
)
def test_settings_of_wrong_types(folder: Path, entries: dict[str, Any]) -> None:
    edit(folder / "tokenizer_config.json", **entries)
    refused(folder, "tokenizer_config.json", next(iter(entries)))


# --- files ------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "name",
    ["config.json", SHARD, "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
     "special_tokens_map.json", INDEX],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, name, "named pipe")


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_a_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", "named pipe")
    (tmp_path / "s.gguf").mkdir()
    refused(tmp_path / "s.gguf", "config.json")


@pytest.mark.parametrize("name", ["config.json", SHARD, "tokenizer.json", "chat_template.jinja", "tokenizer.model"])
def test_links_carry_nothing_in_from_outside(folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    if (folder / name).exists():
        (folder / name).rename(secret)
    else:
        secret.write_text("secret")
    (folder / name).symlink_to(secret)
    refused(folder, name, "link")


def test_a_snapshot_of_the_hub_links_to_its_blobs(folder: Path) -> None:
    snapshot, blobs = (folder.parent / "models--o--n" / part for part in ("snapshots/abc", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in folder.iterdir():
        file.rename(blobs / f"sha of {file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/sha of {file.name}")
    assert open_model(str(snapshot)).file("tokenizer.json")
    (folder.parent / "secret").write_text("secret")
    (snapshot / "chat_template.jinja").symlink_to("../../../secret")
    refused(snapshot, "chat_template.jinja", "link")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "a" * 300 + "/b", "~nobody-of-this-name/x"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_model(name)
    assert caught.value.hint


def test_what_changes_while_it_is_read_is_noticed(folder: Path) -> None:
    checkpoint = open_model(str(folder))
    stamp, file = source_stamp(checkpoint), folder / SHARD
    require_unchanged(checkpoint, stamp)
    before, data = file.stat(), bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert source_stamp(checkpoint) != stamp
    with pytest.raises(SourceError, match="changed while it was read"):
        require_unchanged(checkpoint, stamp)


# --- tensors ----------------------------------------------------------------------------------


def overlap(header: dict[str, Any]) -> None:
    header["model.layers.0.mlp.up_proj.weight"] = header["model.layers.0.mlp.gate_proj.weight"]


def shift(header: dict[str, Any]) -> None:
    last = max(header, key=lambda name: header[name].get("data_offsets", [0, 0])[1])
    header[last]["data_offsets"] = [n - 4 for n in header[last]["data_offsets"]]


def mistype(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["dtype"] = "F16"


def double(header: dict[str, Any]) -> str:
    text = json.dumps(header)
    return text[:-1] + f', "model.norm.weight": {json.dumps(header["model.norm.weight"])}}}'


def negative(header: dict[str, Any]) -> None:
    header["model.norm.weight"]["shape"] = [-8, -8]


def name_long(header: dict[str, Any]) -> None:
    header["x" * 1000] = header.pop("model.norm.weight")


@pytest.mark.parametrize("change", [overlap, shift, mistype, double, negative, name_long])
def test_safetensors_that_lie(folder: Path, change: Any) -> None:
    edit_header(folder / SHARD, change)
    refused(folder, SHARD)


def test_safetensors_with_more_than_their_header_lists(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size + 8)
    refused(folder, "8 extra bytes after the last tensor")


def test_a_header_as_long_as_the_file(folder: Path) -> None:
    with (folder / SHARD).open("wb") as file:
        file.write((2 << 30).to_bytes(8, "little"))
        file.truncate((2 << 30) + 8)
    refused(folder, SHARD, "header")


def test_a_tensor_in_two_shards(folder: Path) -> None:
    weights = tiny_weights(tiny_config())
    (folder / SHARD).unlink()
    norm = {"model.norm.weight": weights.pop("model.norm.weight")}
    save_file(weights | norm, folder / "a.safetensors")
    save_file({"model.norm.weight": np.ones(64, np.float32)}, folder / "b.safetensors")
    where = dict.fromkeys(weights, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))
    refused(folder, "a.safetensors", "b.safetensors", "both hold tensor 'model.norm.weight'")


def test_an_index_of_too_many_shards(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"t{n}": f"{n}.safetensors" for n in range(2000)}}))
    refused(folder, INDEX, "2,000 files")


# --- GGUF -------------------------------------------------------------------------------------


def at_key(data: bytes, key: str) -> int:
    """Where what follows a key, or a tensor's name, begins."""
    packed = struct.pack("<Q", len(key)) + key.encode()
    return data.index(packed) + len(packed)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def patch(path: Path, at: int, new: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + new + data[at + len(new) :])


@pytest.mark.parametrize("at", [8, 16])
@pytest.mark.parametrize("count", [2**20, 2**60, 2**64 - 1])
def test_gguf_counts_beyond_the_file(gguf: Path, at: int, count: int) -> None:
    patch(gguf, at, struct.pack("<Q", count))
    refused(gguf, str(gguf))


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IQ", 8, 2**60),
        struct.pack("<IIQ", 9, 0, 2**60),
        struct.pack("<IIQ", 9, 8, 2**40),
        struct.pack("<IIQIQ", 9, 9, 1, 9, 1) + struct.pack("<IQ", 9, 1) * 3,
    ],
)
def test_gguf_lengths_beyond_the_file(gguf: Path, value: bytes) -> None:
    patch(gguf, at_key(gguf.read_bytes(), "llama.block_count"), value)
    refused(gguf, str(gguf))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 3e38])
@pytest.mark.parametrize("key", [".rope.freq_base", ".attention.layer_norm_rms_epsilon", ".rope.scaling.factor"])
def test_gguf_numbers_that_are_none(tmp_path: Path, key: str, value: float) -> None:
    metadata = {".rope.scaling.type": "yarn", key: value}
    write_gguf(tmp_path / "m.gguf", metadata=metadata)
    refused(tmp_path / "m.gguf", "m.gguf")


@pytest.mark.parametrize("alignment", [0, 3, 24, 2**31])
def test_gguf_alignment_that_is_none(tmp_path: Path, alignment: int) -> None:
    write_gguf(tmp_path / "m.gguf", metadata={"general.other_one": alignment})
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"general.other_one", b"general.alignment"))
    refused(tmp_path / "m.gguf", "general.alignment")


def test_gguf_tensors_that_overlap_or_lie_outside(gguf: Path) -> None:
    data = gguf.read_bytes()
    at = at_key(data, "blk.1.attn_q.weight") + 4 + 16 + 4
    for offset in (0, 64, 2**40, 2**63):
        gguf.write_bytes(data[:at] + struct.pack("<Q", offset) + data[at + 8 :])
        refused(gguf, "blk.1.attn_q.weight")


def test_gguf_tensors_of_another_type_than_their_place(gguf: Path) -> None:
    patch(gguf, at_key(gguf.read_bytes(), "blk.1.attn_q.weight") + 4 + 16, struct.pack("<I", 1))
    refused(gguf, "wrong type")


def test_gguf_names_that_stand_twice(gguf: Path) -> None:
    data = gguf.read_bytes()
    gguf.write_bytes(data.replace(b"blk.1.attn_k.weight", b"blk.1.attn_v.weight"))
    refused(gguf, "duplicate tensor 'blk.1.attn_v.weight'")
    gguf.write_bytes(data.replace(b"llama.attention.key_length", b"llama.attention.head_count"[:26]))
    refused(gguf, "duplicate key 'llama.attention.head_count'")


# --- tokenizers -------------------------------------------------------------------------------


def test_a_tokenizer_that_no_runtime_opens_ends_the_build(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].append("nowhere nothing")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SourceError, match=r"tokenizer\.json") as caught:
        try_tokenizer(open_model(str(folder)))
    assert caught.value.hint


def test_added_tokens_whose_ids_have_a_gap(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 380, "content": "<far>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SourceError, match="<far>") as caught:
        try_tokenizer(open_model(str(folder)))
    assert caught.value.hint


@pytest.mark.parametrize("target", ["/proc/self/mem", "/dev/zero", "/dev/full", "nowhere", "m.gguf"])
def test_a_link_to_what_cannot_be_read(tmp_path: Path, target: str) -> None:
    (tmp_path / "m.gguf").symlink_to(target)
    refused(tmp_path / "m.gguf")
