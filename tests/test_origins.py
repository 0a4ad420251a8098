"""What leaves this machine says nothing about where on it things lie."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from edgekit import build_bundle, open_bundle
from edgekit.cli import run
from edgekit.host.origins import find_origin, remember_origin
from edgekit.testing import tiny_checkpoint
from edgekit.types import Provenance

UNIQUE = "zanzibar-7f3a"
TEXT = "The quick brown fox jumps over the lazy dog. Paris is the capital of France, and Rome of Italy. "


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Everything lies under a folder with a name that is found again; the cache too."""
    home = tmp_path / UNIQUE
    home.mkdir()
    monkeypatch.setenv("EDGEKIT_CACHE", str(home / "cache"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def told(folder):
    """Every file below a folder whose bytes hold the name."""
    files = [f for f in folder.rglob("*") if f.is_file()] if folder.is_dir() else [folder]
    assert files
    return [f.name for f in files if UNIQUE.encode() in f.read_bytes()]


def test_bundles_records_and_reports_hold_no_path(home):
    model = tiny_checkpoint(home / "model")
    shipped = home / "shipped"
    shipped.mkdir()
    recipe = home / "mine.toml"
    ours = os.path.join(os.path.dirname(__file__), "..")  # noqa: PTH118, PTH120
    shutil.copy(f"{ours}/edgekit/recipes/int4.toml", recipe)
    target = home / "cpu.toml"
    shutil.copy(f"{ours}/targets/cpu.toml", target)
    text = home / "text.txt"
    text.write_text(TEXT * 60)
    bundle = shipped / "bundle"
    for line in (
        ["build", model, "--recipe", recipe, "--target", target, "-o", bundle],
        ["verify", bundle, "--text", text, "--tokens", "256", "--window", "64", "--max-kld", "100", "--min-top1", "0",
         "--record"],
        ["bench", bundle, "--pp", "8", "--tg", "2", "--depth", "0", "--repetitions", "1", "--record",
         "--output", shipped / "bench.jsonl"],
        ["report", bundle, "-o", shipped / "report.html"],
    ):  # fmt: skip
        assert run([str(word) for word in line]) == 0, line
    manifest = open_bundle(bundle).manifest
    assert manifest.quality and manifest.latency
    assert manifest.quality.text == "text.txt"
    assert manifest.provenance.id == "model"
    assert told(shipped) == []


@pytest.mark.parametrize("target", ["iphone-15-pro", "android-nnapi", "portable"])
def test_no_device_is_told_either(home, target):
    model = tiny_checkpoint(home / "model")
    out = home / "shipped" / "bundle"
    options = [] if target == "portable" else ["--context", "64", "--no-emulate"]
    assert run(["build", str(model), "--target", target, "-o", str(out), *options]) == 0
    assert told(out) == []


def test_verify_finds_the_source_again(home, capsys):
    model = tiny_checkpoint(home / "model")
    bundle = build_bundle(str(model), precision="fp32", out=home / "bundle")
    made = bundle.manifest.provenance
    assert made.location == ""
    assert find_origin(made) == str(model)
    assert run(["verify", str(bundle.path), "--tokens", "128", "--window", "64"]) == 0
    assert "pass  source" in capsys.readouterr().out
    shutil.rmtree(home / "cache")
    assert run(["verify", str(bundle.path), "--tokens", "128", "--window", "64"]) == 0
    shown = capsys.readouterr().out
    assert "skip  source" in shown
    assert "--source" in shown


def test_an_old_manifest_is_read_and_its_path_is_not_followed(home, capsys):
    model = tiny_checkpoint(home / "model")
    bundle = build_bundle(str(model), precision="fp32", out=home / "bundle").path
    shutil.rmtree(home / "cache")
    os.mkfifo(home / "pipe")
    for place in (str(model), str(home / "pipe"), "/dev/zero"):
        manifest = json.loads((bundle / "edgekit.json").read_text())
        manifest["provenance"]["location"] = place
        (bundle / "edgekit.json").write_text(json.dumps(manifest))
        assert run(["verify", str(bundle), "--tokens", "128", "--window", "64"]) == 0
        assert "skip  source" in capsys.readouterr().out


def test_only_names_that_are_good_anywhere_are_taken_from_a_bundle(home):
    made = Provenance("org/name", "hub", "ab" * 32)
    assert find_origin(made) == "org/name"
    assert find_origin(replace(made, id=str(home))) == ""
    assert find_origin(replace(made, kind="folder")) == ""
    assert find_origin(replace(made, sha256="../../../etc/passwd", kind="gguf")) == ""


def test_a_cache_that_cannot_be_written_is_no_error(home, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", "/dev/null/nothing")
    remember_origin(Provenance("model", "folder", "ab" * 32, location=str(home)))
    assert find_origin(Provenance("model", "folder", "ab" * 32)) == ""


def test_folders_with_the_same_weights_are_told_apart(home, capsys):
    """The weights alone do not say what a bundle was made of: the config decides, too, what they compute."""
    first = tiny_checkpoint(home / "first")
    second = tiny_checkpoint(home / "second", rope_theta=500000.0)
    one, two = (build_bundle(str(m), precision="fp32", out=home / f"of-{m.name}") for m in (first, second))
    assert one.manifest.provenance.sha256 == two.manifest.provenance.sha256
    assert find_origin(one.manifest.provenance, one.sha256) == str(first)
    few = ["--tokens", "128", "--window", "64"]
    for bundle in (one, two):
        assert run(["verify", str(bundle.path), *few]) == 0
        assert "pass  source" in capsys.readouterr().out
    assert len(list((home / "cache" / "references").iterdir())) == 2
    assert run(["verify", str(one.path), *few, "--source", str(second)]) == 3
    assert "but another configuration: rope" in " ".join(capsys.readouterr().out.split())


def test_a_config_that_was_changed_since_is_not_the_source(home, capsys):
    model = tiny_checkpoint(home / "model")
    bundle = build_bundle(str(model), precision="fp32", out=home / "bundle")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": [2, 3], "max_position_embeddings": 256}))
    few = ["--tokens", "128", "--window", "64"]
    assert run(["verify", str(bundle.path), *few]) == 0
    assert "pass  source" in capsys.readouterr().out
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert run(["verify", str(bundle.path), *few]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "skip source" in shown
    assert "norm_eps: '1e-05', now '0.001'" in shown
