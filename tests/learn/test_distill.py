"""From a teacher to a folder with a student in it, and to what stands beside it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from edgekit import build_bundle, open_bundle
from edgekit.build.learned import CARD, FILE, read_card
from edgekit.bundle.reading import read_initializers
from edgekit.config.recipe import load_recipe, load_target
from edgekit.errors import LearnError
from edgekit.learn.distill import Text, distill
from edgekit.learn.heal import Method
from edgekit.learn.plan import Effort
from edgekit.learn.shapes import Shape
from edgekit.learn.student_on_grid import Recovery
from edgekit.source import open_config_only, open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types.data import DataCard, DataSource


def windows(count, seed):
    return np.random.default_rng(seed).integers(4, 384, (count, 24))


SOURCE = DataSource("text.txt", "0" * 64, 3, 960, 1.0, "CC0", 0, 0)
TEXT = Text(windows(32, 0), windows(8, 1), windows(2, 2), DataCard((SOURCE,), 768, 192, 24, 0))
METHOD = Method(steps=40, rate=2e-3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=4)))


def test_the_student_stands_beside_its_start_the_control_and_a_smaller_model(teacher, tmp_path):
    smaller = open_model(str(tiny_checkpoint(tmp_path / "smaller", num_hidden_layers=1, seed=5)))
    made = distill(teacher, Shape(3, 64, 2), TEXT, METHOD, out=tmp_path / "student", control=True, beside=[smaller])
    student, start, alone, small = made.card.scores
    assert [s.model for s in made.card.scores] == ["student", "not healed", "text alone", "smaller"]
    assert student.kld.value < start.kld.value
    assert student.kld.value < min(alone.kld.value, small.kld.value)
    opened = open_model(str(made.path))
    assert (opened.spec.layers, opened.spec.intermediate_size) == (3, 64)
    card = (made.path / "README.md").read_text()
    assert "3 of 4 layers" in card
    assert f"| not healed | {start.kld.value:.4f} " in card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["smaller", "student"]


def test_a_run_killed_while_healing_goes_on_from_the_same_cut(teacher, tmp_path):
    def stop(point):
        if point.step == 6:
            raise KeyboardInterrupt

    options = {"out": tmp_path / "student", "cache_bytes": 1_000_000}
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, Shape(2, 128, 2), TEXT, METHOD, report=stop, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["student.run"]
    done = []
    distill(teacher, Shape(2, 128, 2), TEXT, METHOD, progress=lambda task, *_: done.append(task), **options)
    assert "weighing layers" not in done
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_student_of_its_own_is_taken_from_a_configuration(teacher, tmp_path):
    path = tiny_checkpoint(tmp_path / "config", "qwen2", num_hidden_layers=1, intermediate_size=64)
    (path / "model.safetensors").unlink()
    made = distill(teacher, open_config_only(str(path)), TEXT, METHOD, out=tmp_path / "student")
    opened = open_model(str(made.path))
    assert (opened.spec.architecture, opened.spec.layers) == ("qwen2", 1)
    assert np.array_equal(
        opened.weights.read("model.embed_tokens.weight"), teacher.weights.read("model.embed_tokens.weight")
    )


def test_what_cannot_be_a_student_is_refused_and_nothing_is_left(teacher, tmp_path):
    larger = open_model(str(tiny_checkpoint(tmp_path / "larger", num_hidden_layers=6)))
    foreign = replace(teacher, spec=replace(teacher.spec, vocab_size=400))
    few = replace(TEXT, held_out=TEXT.held_out[:2])
    for wanted, text, message in (
        (larger, TEXT, "more than its teacher"),
        (foreign, TEXT, "another vocabulary"),
        (Shape(2, 128, 2), few, "too few to judge on"),
    ):
        with pytest.raises(LearnError, match=message):
            distill(teacher, wanted, text, METHOD, out=tmp_path / "student")
        assert [p.name for p in tmp_path.iterdir()] == ["larger"]
    assert json.loads((tmp_path / "larger" / "config.json").read_text())["num_hidden_layers"] == 6


def test_the_card_travels_to_the_bundle_and_into_the_report(teacher, tmp_path):
    from edgekit.report import write_report

    made = distill(teacher, Shape(3, 128, 2), TEXT, METHOD, out=tmp_path / "student")
    assert read_card(made.path) == made.card
    card = made.card
    assert (card.kind, card.teacher, card.tokens, card.seed) == ("distill", "tiny", card.steps * 2 * 24, 0)
    assert card.data.sources[0].licence == "CC0"
    assert "| text.txt | 3 | 960 | CC0 | - |" in (made.path / "README.md").read_text()
    bundle = build_bundle(str(made.path), out=tmp_path / "b")
    assert open_bundle(bundle.path).manifest.learned == card
    page = write_report([open_bundle(bundle.path)], tmp_path / "report.html").read_text()
    assert f"not healed: KLD {card.scores[1].kld.value:.3}" in page
    assert f"distill, {card.tokens:,} tokens in {card.steps} steps" in page
    assert "training step" in page


@pytest.fixture(scope="module")
def on_grid(teacher, tmp_path_factory):
    """A student trained on the grids of ``small``, from the teacher's cached predictions."""
    out = tmp_path_factory.mktemp("grid") / "student"
    recovery = Recovery(load_recipe("small"), load_target("cpu"), Effort(steps=12, batch=4))
    return distill(
        teacher, Shape(3, 128, 2), TEXT, replace(METHOD, steps=4), out=out, cache_bytes=1_000_000, recovery=recovery
    )


def test_the_codes_of_the_student_are_those_of_the_bundle_and_of_its_weights(on_grid, tmp_path):
    said = []
    bundle = build_bundle(str(on_grid.path), recipe="small", out=tmp_path / "b", note=said.append)
    trained, stored = load_file(on_grid.path / FILE), read_initializers(bundle)
    names = [n for n in trained if n.endswith((".codes", ".scales", ".zeros"))]
    assert len(names) == 60
    for name in names:
        assert np.array_equal(stored[name].numpy().reshape(-1), trained[name].reshape(-1)), name
    assert not said
    assert {t.error for t in bundle.manifest.tensors if t.grid} == {0.0}
    assert bundle.manifest.learned.on_grid.recipe == "small"


def test_training_on_the_grid_comes_nearer_to_the_teacher_than_rounding(on_grid):
    scores = {s.model: s.kld.value for s in on_grid.card.scores}
    assert list(scores) == ["student", "not trained on its grid", "not quantized", "not healed"]
    assert scores["student"] < scores["not trained on its grid"]
    assert "grids of recipe 'small'" in (on_grid.path / "README.md").read_text()


def test_the_students_float_weights_are_what_its_codes_say(on_grid, tmp_path):
    """Without the file of codes the folder is the same model: that is what other software reads."""
    shutil.copytree(on_grid.path, tmp_path / "plain")
    (tmp_path / "plain" / FILE).unlink()
    with_codes = read_initializers(build_bundle(str(on_grid.path), recipe="small", out=tmp_path / "a"))
    plain = open_model(str(tmp_path / "plain")).weights
    for name in ("model.norm.weight", "model.layers.1.post_attention_layernorm.weight"):
        assert np.array_equal(with_codes[name].numpy(), plain.read(name))
    name = "model.layers.1.mlp.up_proj.weight"
    values = np.unique(plain.read(name)[0, :64])
    assert len(values) <= 16
    assert not (tmp_path / "plain" / "kept-layers.json").exists()
    assert (tmp_path / "plain" / CARD).exists()


def test_a_run_killed_on_its_grid_goes_on(teacher, on_grid, tmp_path):
    def stop(point):
        seen.append(point.step)
        if len(seen) > 10:
            raise KeyboardInterrupt

    seen = []
    recovery = Recovery(load_recipe("small"), load_target("cpu"), Effort(steps=12, batch=4))
    options = {"out": tmp_path / "student", "cache_bytes": 1_000_000, "recovery": recovery}
    method = replace(METHOD, steps=4)
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, Shape(3, 128, 2), TEXT, method, report=stop, **options)
    distill(teacher, Shape(3, 128, 2), TEXT, method, **options)
    for name in (FILE, "model.safetensors"):
        again, once = (load_file(folder / name) for folder in (tmp_path / "student", on_grid.path))
        assert again.keys() == once.keys()
        assert all(np.array_equal(again[n], once[n]) for n in once)


def test_a_folder_of_another_run_is_not_gone_on_with(teacher, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, Shape(3, 128, 2), TEXT, METHOD, out=tmp_path / "student", progress=stop)
    with pytest.raises(LearnError, match="another run"):
        distill(teacher, Shape(2, 128, 2), TEXT, METHOD, out=tmp_path / "student")
    assert [p.name for p in tmp_path.iterdir()] == ["student.run"]


def test_an_error_before_training_leaves_nothing(teacher, tmp_path):
    from edgekit.learn import memory

    for options, message in (
        ({"method": Method(minutes=0.0)}, "too few"),
        ({"cache_bytes": 1000}, "fewer than 8 tokens"),
        ({"recovery": Recovery(load_recipe("fp16"), load_target("cpu"), Effort())}, "has no grid"),
    ):
        method = options.pop("method", METHOD)
        with pytest.raises(LearnError, match=message):
            distill(teacher, Shape(3, 128, 2), TEXT, method, out=tmp_path / "student", **options)
        assert not list(tmp_path.iterdir())
    with pytest.raises(LearnError, match=r"about 1000 TB of memory \(estimated\)"):
        memory.require_memory(10**15, "use less")
