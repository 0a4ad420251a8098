"""Recovery end to end, on a model of two layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from edgekit import open_bundle  # noqa: E402
from edgekit.build.learned import FILE, Learned  # noqa: E402
from edgekit.bundle.reading import read_initializers  # noqa: E402
from edgekit.errors import BundleError, GateFailed, LearnError  # noqa: E402
from edgekit.learn import plan  # noqa: E402
from edgekit.learn import recover as room  # noqa: E402
from edgekit.learn.plan import Effort  # noqa: E402
from edgekit.learn.recover import Wish, recover  # noqa: E402
from edgekit.testing import tiny_checkpoint  # noqa: E402
from edgekit.verify.bundle import verify_bundle  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny"))


@pytest.fixture(scope="module")
def effort():
    return Effort(text=("packaged",), steps=16, batch=4)


@pytest.fixture(scope="module")
def made(model, effort, tmp_path_factory):
    """A recovered bundle, the codes that its run left, and the points of the run."""
    folder, kept, points = tmp_path_factory.mktemp("out"), {}, []
    build = room._build

    def keeping(wish, run, out, **options):
        kept["learned"] = (run / FILE).read_bytes()
        return build(wish, run, out, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_build", keeping)
        found = recover(Wish(model, recipe="small"), effort, out=folder / "b", report=points.append)
    return found, kept["learned"], points


def data(bundle):
    return {f.path: f.sha256 for f in bundle.manifest.files}


def test_it_is_nearer_to_fp32_in_onnx_runtime_than_the_calibrated_bundle(made):
    found, _, points = made
    for gain in found.card.gains:
        assert gain.gained.low > 0
        assert gain.after.kld_mean.value < gain.before.kld_mean.value
    assert [p.step for p in points] == list(range(17))
    assert min(p.watched for p in points[1:]) < points[0].watched


def test_the_card_is_in_the_bundle_and_the_run_is_gone(made):
    found, _, _ = made
    assert open_bundle(found.bundle.path).manifest.learned == found.card
    assert found.card.tokens == 16 * 4 * 512
    assert not found.bundle.path.with_name("b.run").exists()


def test_what_was_trained_is_in_the_file_to_the_bit(made, model, tmp_path):
    found, learned, _ = made
    (tmp_path / FILE).write_bytes(learned)
    from safetensors.numpy import load_file

    trained, stored = load_file(tmp_path / FILE), read_initializers(found.bundle)
    checked = 0
    for name, value in trained.items():
        if name.endswith((".codes", ".scales", ".zeros")) and name in stored:
            assert np.array_equal(stored[name].numpy().reshape(-1), value.reshape(-1)), name
            checked += 1
    assert checked > 20


def test_it_passes_verify(made, model):
    found, _, _ = made
    verification = verify_bundle(found.bundle, source=model, tokens=1024)
    assert {c.name: c.status for c in verification.checks}["weights"] == "pass"
    assert not [c for c in verification.checks if c.status == "fail"]


def test_a_run_that_is_stopped_ends_with_the_same_bytes(made, model, effort, tmp_path, monkeypatch):
    found, _, _ = made
    monkeypatch.setattr("edgekit.learn.loop.SAVE_EVERY", 0.0)
    for stop in (3, 9, None):

        def report(point, stop=stop):
            if point.step == stop:
                raise KeyboardInterrupt

        try:
            again = recover(Wish(model, recipe="small"), effort, out=tmp_path / "b", report=report)
        except KeyboardInterrupt:
            assert not (tmp_path / "b").exists()
    assert data(again.bundle) == data(found.bundle)


def test_a_run_of_something_else_is_not_gone_on_with(model, effort, tmp_path):
    def stop(point):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(Wish(model, recipe="small"), effort, out=tmp_path / "b", report=stop)
    with pytest.raises(LearnError, match="another run"):
        recover(Wish(model, recipe="small"), Effort(effort.text, steps=17, batch=4), out=tmp_path / "b")


def test_no_gain_no_bundle(model, effort, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MOVE", 0.0)
    with pytest.raises(GateFailed, match="gained nothing"):
        recover(Wish(model, recipe="small"), effort, out=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_too_little_text_for_a_step_leaves_nothing(model, effort, tmp_path):
    with pytest.raises(LearnError, match="windows to train on"):
        recover(Wish(model, recipe="small"), Effort(effort.text, steps=1, batch=4096), out=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_what_is_refused_before_anything_is_begun(model, effort, tmp_path):
    with pytest.raises(LearnError, match="no grid"):
        recover(Wish(model, precision="fp16"), effort, out=tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(BundleError, match="not a bundle"):
        recover(Wish(model), effort, out=tmp_path / "full")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_minutes_become_steps_once_and_a_stopped_run_keeps_them(model, effort, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "TRIAL", 0.0)
    seen = []

    def stop(point):
        seen.append((tmp_path / "b.run" / "plan.json").read_text())
        raise KeyboardInterrupt

    timed = Effort(effort.text, minutes=30, batch=4)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            recover(Wish(model, recipe="small"), timed, out=tmp_path / "b", report=stop)
    assert len(set(seen)) == 1
    assert '"steps": ' in seen[0]


def test_small_memory_trains_the_same(made, model, effort, tmp_path):
    curves = []
    for small in (False, True):
        points = []

        def report(point, points=points):
            points.append(point)
            if point.step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            wanted = replace(effort, small_memory=small)
            recover(Wish(model, recipe="small"), wanted, out=tmp_path / str(small), report=report)
        curves.append([(p.loss, *p.watched) for p in points])
    for plain, small in zip(*curves, strict=True):
        assert small == pytest.approx(plain, rel=2e-3)


def test_learned_weights_are_read_as_they_were_written(made, model, tmp_path):
    from edgekit.build.pipeline import draw
    from edgekit.config.recipe import load_recipe
    from edgekit.source import open_model

    (tmp_path / FILE).write_bytes(made[1])
    _, weights = draw(open_model(model), load_recipe("small"), 21)
    learned = Learned(tmp_path / FILE, weights)
    assert learned.recipe == load_recipe("small")
    assert set(learned.float_errors()) <= {n for n in weights.names() if n.endswith("norm.weight")}
    assert learned.float_errors()
