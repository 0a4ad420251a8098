import shutil
import subprocess
import sys
from math import prod

import pytest

from edgekit import build_bundle, inspect_model
from edgekit.errors import BundleError, SourceError
from edgekit.estimate.sizes import part_of
from edgekit.testing import tiny_checkpoint
from edgekit.types import Grid
from edgekit.types.layout import Layout
from tests.source.ggufs import write_gguf


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("inspect") / "tiny")


@pytest.fixture(scope="module")
def bundle(checkpoint):
    return build_bundle(str(checkpoint), precision="int4", out=checkpoint.parent / "bundle")


def test_a_checkpoint_is_told_as_it_is_stored(checkpoint):
    found = inspect_model(checkpoint)
    assert found.kind == "checkpoint"
    assert found.bits_per_weight == 32
    assert found.bytes == 4 * found.parameters
    assert {tensor.stored for tensor in found.tensors} == {"F32"}
    assert sum(prod(tensor.shape) for tensor in found.tensors) == found.parameters
    assert [part.part for part in found.parts] == ["embedding", "attention", "mlp", "norms"]
    assert sum(part.bytes for part in found.parts) == found.bytes
    assert sum(part.tensors for part in found.parts) == len(found.tensors)


def test_a_bundle_is_told_as_it_ships(checkpoint, bundle):
    found = inspect_model(bundle.path)
    assert found.kind == "bundle"
    assert found.parameters == inspect_model(checkpoint).parameters
    assert found.bytes == sum(
        file.stat().st_size for file in bundle.path.rglob("*") if file.name != "edgekit.json" and file.is_file()
    )
    assert sum(part.bytes for part in found.parts) == found.bytes
    assert sum(part.parameters for part in found.parts) == found.parameters
    by_name = {tensor.name: tensor for tensor in found.tensors}
    down = by_name["model.layers.1.mlp.down_proj.weight"]
    assert isinstance(down.grid, Grid)
    assert down.bytes == Layout.of(down.shape, down.grid).nbytes(down.grid)
    assert 0 < down.error < 0.2
    assert found.bits_per_weight == bundle.manifest.bits_per_weight


def test_an_untied_head_is_a_part(tmp_path):
    found = inspect_model(tiny_checkpoint(tmp_path / "untied", tie_word_embeddings=False))
    assert "head" in [part.part for part in found.parts]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "norms"),
        ("model.layers.3.input_layernorm.weight", "norms"),
        ("model.layers.3.self_attn.q_norm.weight", "norms"),
        ("model.layers.3.self_attn.q_proj.bias", "attention"),
        ("model.layers.3.mlp.gate_proj.weight", "mlp"),
        ("transformer.h.0.attn.c_attn.weight", "other"),
    ],
)
def test_parts_follow_canonical_names(name, part):
    assert part_of(name) == part


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(SourceError):
        inspect_model(tmp_path / "nothing")
    (tmp_path / "edgekit.json").write_text("{}")
    with pytest.raises(BundleError):
        inspect_model(tmp_path)


_WATCHED = """
import sys
from pathlib import Path

model = Path(sys.argv[1]).resolve()
home = model if model.is_dir() else model.parent
import edgekit.inspect.model, edgekit.bundle, edgekit.source
import edgekit.source.gguf_model  # what is ours and of our dependencies is imported before we watch
import numpy.ma, gguf
found = []

def watch(event, args):
    if event.startswith(("subprocess.", "os.exec", "os.posix_spawn", "os.fork", "os.system", "socket.", "pickle.")):
        found.append(event)
    elif event.startswith("ctypes.dlopen") or event in ("os.remove", "os.rename", "os.mkdir", "os.symlink", "os.chmod"):
        found.append(event)
    elif event == "open" and isinstance(args[2], int) and args[2] & 3:
        found.append(f"open to write {args[0]}")
    elif event == "import" and args[1] and str(home) in str(args[1]):
        found.append(f"import {args[0]}")
    elif event == "compile" and "template" in str(args[1]):
        found.append("compile a template")

sys.addaudithook(watch)
sys.path.insert(0, str(home))
edgekit.inspect.model.inspect_model(str(model))
strangers = {"onnxruntime", "jinja2", "transformers", "torch", "onnx"} & set(sys.modules)
assert not found and not strangers, (found, strangers)
"""


@pytest.mark.parametrize("kind", ["bundle", "checkpoint", "old tokenizer", "gguf"])
def test_inspect_opens_nothing_but_data(kind, tmp_path, checkpoint, bundle):
    """No session, no tokenizer, no template, no pickle, no import from the folder, no process, nothing written."""
    model = tmp_path / "model"
    if kind == "gguf":
        model.mkdir()
        write_gguf(model / "m.gguf")
    else:
        shutil.copytree(bundle.path if kind == "bundle" else checkpoint, model)
    if kind == "old tokenizer":
        (model / "tokenizer.json").unlink()
        (model / "tokenizer.model").write_bytes(b"not read")
    for name in ("numpy", "tokenizers", "json", "custom"):
        if kind != "bundle":
            (model / f"{name}.py").write_text("raise SystemExit('imported')")
    path = model / "m.gguf" if kind == "gguf" else model
    command = [sys.executable, "-B", "-c", _WATCHED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
