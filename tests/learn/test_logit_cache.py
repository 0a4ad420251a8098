"""The teacher's likeliest tokens on disk, and which students may learn from them."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from edgekit.errors import LearnError
from edgekit.learn import logit_cache
from edgekit.learn.layers import Layers
from edgekit.learn.logit_cache import kept_tokens, make_cache
from edgekit.learn.vocabulary import require_same_vocabulary
from edgekit.numerics.softmax import log_softmax
from edgekit.source import open_model
from edgekit.testing import tiny_checkpoint
from edgekit.types import SideFile

WINDOWS = np.random.default_rng(0).integers(4, 384, (11, 16))
ENOUGH = 1_000_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")))


@pytest.fixture(scope="module")
def teacher(checkpoint):
    return Layers(checkpoint.spec, checkpoint.weights)


def chances(teacher, windows):
    x = teacher.embed(windows)
    for i in range(teacher.spec.layers):
        x = teacher.run(i, x)
    return log_softmax(teacher.logits(teacher.normed(x).reshape(-1, 64)).reshape(*windows.shape, -1))


def test_the_likeliest_are_kept_with_the_mass_of_the_others(teacher, tmp_path):
    cache = make_cache(tmp_path / "cache", teacher, WINDOWS, ENOUGH)
    whole = chances(teacher, WINDOWS)
    assert cache.ids.shape == (11, 16, 64)
    best = np.sort(np.argsort(whole, axis=-1)[..., -64:], axis=-1)
    assert (cache.ids == best).mean() > 0.999
    assert np.abs(cache.logprobs - np.take_along_axis(whole, cache.ids.astype(np.int64), axis=-1)).max() < 0.01
    mass = np.exp(cache.logprobs.astype(np.float64)).sum(axis=-1) + np.exp(cache.rest.astype(np.float64))
    assert np.abs(mass - 1).max() < 0.003


def test_the_budget_says_how_many(teacher, tmp_path):
    assert kept_tokens(WINDOWS, WINDOWS.size * (6 * 20 + 2)) == 20
    cache = make_cache(tmp_path / "cache", teacher, WINDOWS, WINDOWS.size * (6 * 20 + 2))
    assert cache.ids.shape[2] == 20
    sizes = sum(f.stat().st_size for f in (tmp_path / "cache").iterdir() if f.name != "cache.json")
    assert sizes == WINDOWS.size * (6 * 20 + 2)
    with pytest.raises(LearnError, match="fewer than 8 tokens") as caught:
        kept_tokens(WINDOWS, 100)
    assert "cache_mb=" in caught.value.hint


def test_a_disk_too_small_is_told_before_anything_is_computed(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(9, 9, 1000))
    monkeypatch.setattr(logit_cache, "_fill", lambda *_: pytest.fail("computed"))
    with pytest.raises(LearnError, match="not enough disk space"):
        make_cache(tmp_path / "cache", teacher, WINDOWS, ENOUGH)


def test_a_cache_that_was_begun_is_gone_on_with(teacher, tmp_path, monkeypatch):
    whole = make_cache(tmp_path / "whole", teacher, WINDOWS, ENOUGH)
    fill, starts = logit_cache._fill, []

    def stopped(cache, layers, windows, at):
        starts.append(at)
        if len(starts) == 2:
            raise KeyboardInterrupt
        fill(cache, layers, windows, at)

    monkeypatch.setattr(logit_cache, "_fill", stopped)
    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path / "cache", teacher, WINDOWS, ENOUGH)
    again = make_cache(tmp_path / "cache", teacher, WINDOWS, ENOUGH)
    assert starts == [0, 8, 8]
    assert np.array_equal(again.ids, whole.ids)
    assert np.array_equal(again.logprobs, whole.logprobs)
    make_cache(tmp_path / "cache", teacher, WINDOWS, ENOUGH)
    assert starts == [0, 8, 8]
    make_cache(tmp_path / "cache", teacher, WINDOWS, ENOUGH, key="another teacher")
    assert starts[3:] == [0, 8]


def test_logits_that_are_no_numbers_are_refused(checkpoint, tmp_path):
    class Damaged:
        def __getattr__(self, name):
            return getattr(checkpoint.weights, name)

        def read(self, name, start=0, stop=None):
            return checkpoint.weights.read(name, start, stop) * (np.nan if name == "model.norm.weight" else 1)

    with pytest.raises(LearnError, match="not finite in window 0"):
        make_cache(tmp_path / "cache", Layers(checkpoint.spec, Damaged()), WINDOWS, ENOUGH)


def changed(checkpoint, change):
    document = json.loads(checkpoint.file("tokenizer.json"))
    change(document["model"])
    files = [f for f in checkpoint.files if f.name != "tokenizer.json"]
    return replace(checkpoint, files=(*files, SideFile("tokenizer.json", json.dumps(document).encode())))


def swap(model):
    vocabulary = model["vocab"]
    a, b = [t for t, i in vocabulary.items() if i in (50, 51)]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


def test_the_same_tokens_are_the_same_however_they_are_written(checkpoint):
    def as_text(model):
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]

    require_same_vocabulary(checkpoint, checkpoint)
    require_same_vocabulary(checkpoint, changed(checkpoint, as_text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "token 50 is"),
        (lambda model: model["merges"].pop(), "merges, the teacher"),
        (lambda model: model["merges"].reverse(), "merge 0 is"),
    ],
)
def test_another_vocabulary_of_the_same_size_is_refused_with_the_reason(checkpoint, change, message):
    with pytest.raises(LearnError, match=message):
        require_same_vocabulary(checkpoint, changed(checkpoint, change))


def test_another_number_of_rows_is_refused(checkpoint):
    larger = replace(checkpoint, spec=replace(checkpoint.spec, vocab_size=400))
    with pytest.raises(LearnError, match="400 rows, the teacher 384"):
        require_same_vocabulary(checkpoint, larger)
