"""From wishes to shapes of students."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit import build_bundle
from edgekit.config.recipe import load_recipe, load_target
from edgekit.errors import LearnError
from edgekit.learn.shapes import Shape, bundle_bytes, cuts, shape_for_share, shape_for_size, shape_of
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "tiny"
    return open_model(str(tiny_checkpoint(path, num_hidden_layers=6, intermediate_size=256, vocab_size=512)))


@pytest.fixture(scope="module")
def spec(teacher):
    return teacher.spec


def test_numbers_are_taken_as_given_and_the_rest_is_the_teacher_s(spec):
    assert shape_of(spec, layers=4) == Shape(4, 256, 2)
    assert shape_of(spec, ffn=128, kv_heads=1) == Shape(6, 128, 1)
    assert shape_of(spec, kv_heads=1).spec(spec).heads == 2


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"layers": 7}, "the teacher has 6"),
        ({"ffn": 320}, "the teacher has 256"),
        ({"kv_heads": 3}, "the teacher has 2"),
        ({"layers": 6}, "would be its teacher"),
        ({"ffn": 100}, "not a multiple of 64"),
    ],
)
def test_what_is_no_student_is_refused(spec, wish, message):
    with pytest.raises(LearnError, match=message):
        shape_of(spec, **wish)


def test_a_share_is_reached_from_below_by_the_largest_shape(spec):
    most = Shape.of(spec).decoder_weights(spec)
    for share in (0.8, 0.5, 0.3):
        shape = shape_for_share(spec, share)
        assert shape.decoder_weights(spec) <= share * most
        larger = [s for s in cuts(spec) if s.decoder_weights(spec) > shape.decoder_weights(spec)]
        assert all(s.decoder_weights(spec) > share * most for s in larger)
    with pytest.raises(LearnError, match="no student has this share"):
        shape_for_share(spec, 0.001)


@pytest.mark.parametrize("recipe", ["int4", "small", "int8"])
def test_the_bytes_are_those_that_a_build_writes(teacher, recipe, tmp_path):
    """The whole model stands in for a student: the same arithmetic from the shape alone."""
    built = build_bundle(teacher.provenance.location, recipe=recipe, out=tmp_path / "b")
    found = bundle_bytes(teacher, Shape.of(teacher.spec), load_recipe(recipe), load_target("cpu"))
    real = sum(f.stat().st_size for f in built.path.rglob("*") if f.is_file())
    assert abs(found - real) < 8_000


def test_a_size_gives_the_largest_shape_that_fits_with_everything_in_it(teacher):
    recipe, target = load_recipe("int4"), load_target("cpu")
    whole = bundle_bytes(teacher, Shape.of(teacher.spec), recipe, target)
    shape = shape_for_size(teacher, recipe, target, whole - 120_000)
    assert bundle_bytes(teacher, shape, recipe, target) <= whole - 120_000
    path = cuts(teacher.spec)
    assert bundle_bytes(teacher, path[path.index(shape) + 1], recipe, target) > whole - 120_000


def test_a_size_out_of_reach_is_answered_with_the_nearest(teacher):
    recipe, target = load_recipe("int4"), load_target("cpu")
    with pytest.raises(LearnError, match=r"the smallest, 1 layers with 64 channels, takes \d+") as caught:
        shape_for_size(teacher, recipe, target, 10_000)
    assert "size_mb=" in caught.value.hint
    with pytest.raises(LearnError, match="the teacher itself"):
        shape_for_size(teacher, recipe, target, 10**9)
    with pytest.raises(LearnError, match="size of its own"):
        shape_for_size(teacher, replace(recipe, size_bytes=5), target, 10_000)
