"""A student comes nearer to its teacher, whatever it learns from."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from edgekit.errors import LearnError  # noqa: E402
from edgekit.learn.heal import Lesson, Method, heal  # noqa: E402
from edgekit.learn.layers import Layers, divergences  # noqa: E402
from edgekit.learn.logit_cache import make_cache  # noqa: E402
from edgekit.learn.losses import Loss  # noqa: E402
from edgekit.source import CutWeights, keep_layers, open_model  # noqa: E402
from edgekit.testing import tiny_checkpoint  # noqa: E402

TEXT = np.random.default_rng(0).integers(4, 384, (24, 24))
OTHER = [np.random.default_rng(1).integers(4, 384, (3, 24)), np.random.default_rng(2).integers(4, 384, (2, 24))]
METHOD = Method(steps=30, rate=2e-3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny", num_hidden_layers=4)
    checkpoint = open_model(str(path))
    return Layers(checkpoint.spec, checkpoint.weights)


@pytest.fixture(scope="module")
def student(teacher):
    kept = (0, 1, 3)
    return Layers(keep_layers(teacher.spec, kept), CutWeights(teacher.weights, kept))


def inputs_of_head(model, windows):
    x = model.embed(windows)
    for i in range(model.spec.layers):
        x = model.run(i, x)
    return model.normed(x)


def cost(model, teacher, windows):
    return divergences(teacher, inputs_of_head(teacher, windows), [inputs_of_head(model, windows)])[0]


@pytest.mark.parametrize(
    ("loss", "left"), [(Loss(), 0.8), (Loss("reverse"), 0.95), (Loss("skewed"), 0.95), (Loss(temperature=2.0), 0.9)]
)
def test_the_student_comes_nearer_to_a_teacher_beside_it(teacher, student, loss, left):
    healed, outcome = heal(
        student, teacher, Lesson(teacher), TEXT, OTHER, Method(loss, steps=30, rate=2e-3), folder=None
    )
    assert outcome.best[0] < left * outcome.points[0].watched[0]
    assert cost(healed, teacher, OTHER[0]) == pytest.approx(outcome.best[0], rel=1e-3)
    assert cost(student, teacher, OTHER[0]) == pytest.approx(outcome.points[0].watched[0], rel=1e-3)


def test_the_likeliest_tokens_on_disk_teach_nearly_as_much(teacher, student, tmp_path):
    cache = make_cache(tmp_path / "cache", teacher, TEXT, 10_000_000)
    _, beside = heal(student, teacher, Lesson(teacher), TEXT, OTHER, METHOD, folder=None)
    _, cached = heal(student, teacher, Lesson(cache=cache), TEXT, OTHER, METHOD, folder=None)
    gained, of = (o.points[0].watched[0] - o.best[0] for o in (cached, beside))
    assert gained > 0.5 * of


def test_text_alone_is_a_control(teacher, student):
    _, outcome = heal(student, teacher, Lesson(), TEXT, OTHER, METHOD, folder=None)
    assert outcome.points[0].watched[0] == pytest.approx(cost(student, teacher, OTHER[0]), rel=1e-3)
    assert outcome.points[-1].loss != 0


def test_table_and_head_stay(teacher, student):
    healed, _ = heal(student, teacher, Lesson(teacher), TEXT, OTHER, METHOD, folder=None)
    for name in healed.weights.names():
        same = np.array_equal(healed.weights.read(name), student.weights.read(name))
        assert same == (name == "model.embed_tokens.weight"), name


def test_a_run_that_was_killed_ends_as_one_that_was_not(teacher, student, tmp_path):
    whole, _ = heal(student, teacher, Lesson(teacher), TEXT, OTHER, METHOD, folder=tmp_path / "whole")

    def stop(point):
        if point.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(student, teacher, Lesson(teacher), TEXT, OTHER, METHOD, folder=tmp_path / "killed", report=stop)
    again, _ = heal(student, teacher, Lesson(teacher), TEXT, OTHER, METHOD, folder=tmp_path / "killed")
    assert all(np.array_equal(again.weights.read(n), whole.weights.read(n)) for n in whole.weights.names())
    with pytest.raises(LearnError, match="another run"):
        heal(student, teacher, Lesson(teacher), TEXT, OTHER, METHOD, folder=tmp_path / "killed", key="other text")


def test_minutes_become_steps_once(teacher, student, tmp_path):
    def stop(point):
        seen.append((tmp_path / "run" / "steps").read_text())
        raise KeyboardInterrupt

    seen = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            heal(student, teacher, Lesson(teacher), TEXT, OTHER, Method(), folder=tmp_path / "run", report=stop)
    assert int(seen[0]) > 0
    assert seen[0] == seen[1]
    with pytest.raises(LearnError, match="too few"):
        heal(student, teacher, Lesson(teacher), TEXT, OTHER, Method(minutes=0.0), folder=None)
