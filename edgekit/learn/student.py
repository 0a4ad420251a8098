"""Write a student as a plain Hugging Face folder: what transformers, llama.cpp's converter and edgekit open.

Names and layouts are those that the teacher's family has: phi3's projections are joined again, a tied head is not
stored. Entries of config.json that describe layers are cut to those that are kept.
"""

from __future__ import annotations

import json
import os
import shutil
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import LearnError
from edgekit.host.disk import say_full, scrap_name, sync, writing
from edgekit.source import FAMILIES, original_files, stored_tensors
from edgekit.strangers import parse_json
from edgekit.types import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from edgekit.types import Checkpoint, ModelSpec, SideFile, Weights

Stored = Literal["float32", "bfloat16"]

WEIGHTS = "model.safetensors"

_CODES: Mapping[Stored, tuple[str, int]] = {"float32": ("F32", 4), "bfloat16": ("BF16", 2)}
"""The type's name in the file, and its bytes."""

_SPARE = 1 << 20
"""Bytes of disk beyond the files' own that must be free."""

ROWS = 1 << 22
"""Weights that are in memory at once while a tensor is written."""


def write_student(
    out: Path,
    teacher: Checkpoint,
    spec: ModelSpec,
    weights: Weights,
    layers: Sequence[int],
    *,
    stored: Stored = "float32",
    cards: Sequence[SideFile] = (),
    copies: Sequence[Path] = (),
    progress: Progress = silent,
) -> Path:
    """Write the folder, whole or not at all. One tensor's rows are in memory at a time.

    Args:
        out: the folder; must not exist, or be empty.
        teacher: whose configuration and tokenizer the student has.
        spec: of the student.
        weights: of the student, by canonical name.
        layers: the teacher's layers that the student's are, in order.
        stored: type of the weights in the file.
        cards: more files, such as README.md; they replace files of the teacher.
        copies: large files to copy into the folder.
        progress: called with the bytes written.

    Raises:
        LearnError: ``out`` cannot be written, or the family cannot express the student.
    """
    out = out.absolute()
    require_free(out)
    files = {f.name: f.data for f in original_files(teacher)}
    config = student_config(parse_json(files["config.json"], "config.json", error=LearnError), spec, layers, stored)
    files["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    files |= {f.name: f.data for f in cards}
    plan = _plan(spec, weights)
    needed = sum(prod(shape) for shape, _ in plan.values()) * _CODES[stored][1] + sum(map(len, files.values())) + _SPARE
    needed += sum(path.stat().st_size for path in copies)
    folder = out.parent / scrap_name()
    try:
        with writing(out, needed, LearnError):
            out.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(out.parent).free
            if free < needed:
                raise say_full(out, needed, free, LearnError)
            folder.mkdir()
            for name, data in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _write(folder / name, iter([data]))
            for path in copies:
                _write(folder / path.name, _pieces(path))
            _write(folder / WEIGHTS, _safetensors(plan, weights, stored, progress))
            require_free(out)
            folder.replace(out)
            sync(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out


def require_free(out: Path) -> None:
    """Raise LearnError unless a folder can be made at ``out``."""
    with writing(out, 0, LearnError):
        if os.path.lexists(out) and (out.is_symlink() or not out.is_dir() or any(out.iterdir())):
            raise LearnError(f"{out}: already exists", "choose another folder, or remove this one")


def student_config(
    config: Mapping[str, Any], spec: ModelSpec, layers: Sequence[int], stored: Stored = "float32"
) -> dict[str, Any]:
    """config.json of a student, from its teacher's.

    Raises:
        LearnError: the family derives the head size from the number of heads, which the student has fewer of.
    """
    made = {k: v for k, v in config.items() if k not in ("quantization_config", "auto_map", "_name_or_path")}
    made |= {
        "num_hidden_layers": spec.layers,
        "intermediate_size": spec.intermediate_size,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.tied,
        "dtype": stored,
        "torch_dtype": stored,
    }
    derived = spec.hidden_size // spec.heads
    if spec.head_dim != derived and FAMILIES[spec.architecture].fused:
        # transformers checks the factors of its rope, and llama.cpp makes them, by hidden_size / heads.
        raise LearnError(
            f"{spec.architecture} derives the head size from the number of heads: none can be left out",
            "leave out `kv_heads`",
        )
    if spec.head_dim != derived or config.get("head_dim") is not None:
        made["head_dim"] = spec.head_dim
    if isinstance(config.get("layer_types"), list):
        made["layer_types"] = [config["layer_types"][i] for i in layers]
    if not all(spec.rotary) or config.get("no_rope_layers") is not None:
        made["no_rope_layers"] = [int(rotates) for rotates in spec.rotary]
    elif "no_rope_layer_interval" in config:
        made["no_rope_layers"] = [1] * spec.layers
    if any(spec.windows) and spec.architecture.startswith("qwen"):
        made["max_window_layers"] = sum(window is None for window in spec.windows)
    elif isinstance(config.get("max_window_layers"), int):
        made["max_window_layers"] = min(config["max_window_layers"], spec.layers)
    return made


def _plan(spec: ModelSpec, weights: Weights) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Shape of every tensor in the file, and the canonical tensors whose rows it holds."""
    plan = {}
    for name, parts in stored_tensors(spec, fused=FAMILIES[spec.architecture].fused).items():
        shapes = [weights.shape(part) for part in parts]
        plan[name] = ((sum(shape[0] for shape in shapes), *shapes[0][1:]), parts)
    return plan


def _safetensors(
    plan: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]], weights: Weights, stored: Stored, progress: Progress
) -> Iterator[bytes]:
    """The file, piece by piece: 8 bytes of header length, a JSON header, the tensors without gaps."""
    code, width = _CODES[stored]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, _) in plan.items():
        start, end = end, end + prod(shape) * width
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    yield len(data).to_bytes(8, "little") + data
    done = 0
    for _, parts in plan.values():
        for part in parts:
            count, *rest = weights.shape(part)
            step = max(1, ROWS // prod(rest))
            for at in range(0, count, step):
                piece = _encode(weights.read(part, at, at + step), stored)
                done += len(piece)
                progress("writing", done, end)
                yield piece


def _encode(values: NDArray[np.float32], stored: Stored) -> bytes:
    if stored == "float32":
        return values.astype("<f4", copy=False).tobytes()
    bits = values.astype("<f4", copy=False).view(np.uint32)
    # To the nearest, ties to even.
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            yield piece


def _write(path: Path, pieces: Iterator[bytes]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
