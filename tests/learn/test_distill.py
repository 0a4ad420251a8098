"""From a teacher to a folder with a student in it, and to what stands beside it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("accelerate")

from edgekit.errors import LearnError
from edgekit.learn.distill import Text, distill
from edgekit.learn.heal import Method
from edgekit.learn.shapes import Shape
from edgekit.source import open_config_only, open_model
from edgekit.testing import tiny_checkpoint


def windows(count, seed):
    return np.random.default_rng(seed).integers(4, 384, (count, 24))


TEXT = Text(windows(32, 0), windows(8, 1), windows(2, 2))
METHOD = Method(steps=40, rate=2e-3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=4)))


def test_the_student_stands_beside_its_start_the_control_and_a_smaller_model(teacher, tmp_path):
    smaller = open_model(str(tiny_checkpoint(tmp_path / "smaller", num_hidden_layers=1, seed=5)))
    made = distill(teacher, Shape(3, 64, 2), TEXT, METHOD, out=tmp_path / "student", control=True, beside=[smaller])
    student, start, alone, small = made.scores
    assert [s.model for s in made.scores] == ["student", "not healed", "text alone", "smaller"]
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
