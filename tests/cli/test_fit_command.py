"""`edgekit fit` as a person calls it."""

import json

import pytest

from edgekit.cli import run
from edgekit.inspect.fit import Fit
from edgekit.record import from_json
from edgekit.testing import tiny_config


@pytest.fixture
def models(tmp_path):
    """Two configurations of one family, 130 and 360 million parameters, without weights."""
    common = {"num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192}
    paths = []
    for name, hidden, inner, layers in (("small", 576, 1536, 30), ("large", 960, 2560, 32)):
        sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
        (tmp_path / name).mkdir()
        config = tiny_config(**(common | sizes), num_attention_heads=hidden // 64)
        config["num_key_value_heads"] = hidden // 64
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        paths.append(str(tmp_path / name))
    return paths


def test_one_model_on_every_target(models, capsys):
    assert run(["fit", models[0]]) == 0
    captured = capsys.readouterr()
    # On a slow machine it takes over two seconds, and then the bar says so.
    assert all(line.startswith("planning bundles") for line in captured.err.splitlines())
    for word in ("raspberry-pi-5", "jetson-orin-nano", "rk3588", "laptop-16gb", "estimated", "17.1 GB/s", "tok/s (max"):
        assert word in captured.out
    cpu = next(line for line in captured.out.splitlines() if line.startswith("cpu "))
    assert cpu.split() == ["cpu", *["unknown"] * 6]
    assert "--max-memory-mb" in captured.out
    assert "quality per byte" not in captured.out


def test_limits_decide(models, capsys):
    arguments = ["fit", models[0], "--target", "cpu", "--target", "rk3588", "--context", "512", "--json"]
    assert run([*arguments, "--max-memory-mb", "9000", "--max-size-mb", "200"]) == 0
    found = from_json(Fit, capsys.readouterr().out)
    assert (found.limits.memory, found.limits.size) == (9 * 10**9, 200 * 10**6)
    assert [(c.target, c.precision) for c in found.choices] == [("cpu", "int8"), ("rk3588", "int8")]
    assert found.models[0].context == 512
    assert run([*arguments[:-1], "--min-tok-s", "100000"]) == 0
    assert "limit 100,000" in capsys.readouterr().out


def test_several_models_and_this_machine(models, capsys, monkeypatch):
    from edgekit.inspect import fit
    from edgekit.types import Series

    monkeypatch.setattr(fit.measure, "measure_bandwidth", lambda threads, size: Series("read", "B/s", (1e10, 2e10)))
    assert run(["fit", *models, "--target", "rk3588", "--here"]) == 0
    shown = capsys.readouterr().out
    assert "20.0 GB/s measured" in shown
    assert "best at its size" in shown
    assert "loss, nats (estimated)" in shown
    best = next(line for line in shown.splitlines() if line.startswith("rk3588") and "least loss" in line)
    assert models[1] in best


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--target", "rk3358"], "unknown target 'rk3358'", "did you mean 'rk3588'?"),
        (["--context", "9000"], "--context is 9000", "8192 or less"),
    ],
)
def test_mistakes(models, arguments, error, hint, capsys):
    assert run(["fit", models[0], *arguments]) == 1
    captured = capsys.readouterr().err
    assert error in captured
    assert hint in captured


def test_an_architecture_that_is_not_known(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("mamba")))
    assert run(["fit", str(tmp_path), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert "architecture 'mamba'" in document["error"]
    assert "optimum" in document["hint"]
