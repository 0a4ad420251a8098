"""Text that a model writes itself."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest

import edgekit.build.sample_text as sample_text
from edgekit import build_bundle
from edgekit.build.sample_text import PLACE, SEQUENCES, _turns, _Writer, sampler
from edgekit.run import Tokenizer, decode_batch, load_runner
from edgekit.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = tiny_checkpoint(tmp_path_factory.mktemp("sampled") / "tiny")
    return build_bundle(str(model), precision="int8", out=model.parent / "bundle")


def test_sequences_side_by_side_have_the_logits_of_each_alone(bundle):
    tokens = np.random.default_rng(0).integers(3, 300, (3, 12))
    ids = tokens[:, 0].copy()
    found = []
    for step, logits in enumerate(decode_batch(bundle, ids, 12)):
        found.append(logits)
        ids[:] = tokens[:, min(step + 1, 11)]
    runner = load_runner(bundle)
    try:
        for row, alone in enumerate(tokens):
            ours = np.stack([step[row] for step in found])
            np.testing.assert_allclose(ours, runner.logits(alone.tolist()), rtol=1e-3, atol=1e-3)
    finally:
        runner.close()


def test_the_same_seed_writes_the_same_text_and_leaves_nothing(bundle, monkeypatch, tmp_path):
    monkeypatch.setattr(sample_text, "LENGTH", 24)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    folders = []

    def build(folder):
        folders.append(folder)
        assert folder.is_relative_to(tmp_path)
        return bundle

    sample = sampler(build)
    first, again, other = sample(1, 3), sample(1, 3), sample(1, 4)
    assert first == again != other
    assert 0 < len(first) <= SEQUENCES
    assert len(sample(SEQUENCES * 24 + 1, 3)) > len(first)
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_drawn_with_their_probability():
    logits = np.log(np.tile(np.array([0.5, 0.3, 0.2], np.float32), (20_000, 1)))
    drawn = sample_text._draw(logits, np.random.default_rng(0))
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.5, 0.3, 0.2], abs=0.02)


def test_a_conversation_is_opened_as_the_template_does(bundle):
    tokenizer = Tokenizer.of(bundle)
    before, after = _turns(tokenizer)
    whole = tokenizer.render_chat([{"role": "user", "content": PLACE}])
    assert tokenizer.decode(before, special=True) + PLACE + tokenizer.decode(after, special=True) == whole


def test_whoever_ends_is_given_the_next_opening():
    writer = _Writer(cycle([[10, 11], [20]]), frozenset({2}))
    assert next(writer) == 10
    drawn = [5, 6, 7, 2, 8, 2, 9, 9]
    assert [writer.push(token) for token in drawn] == [11, 6, 7, 20, 8, 10, 11, 9]
    assert writer.parts == [[6, 7], [8], [9]]


def test_a_model_without_a_template_writes_documents(bundle, monkeypatch):
    tokenizer = Tokenizer.of(bundle)
    monkeypatch.setattr(tokenizer, "_template", None)
    first = bundle.manifest.spec.bos_token_id
    assert [next(writer) for writer in sample_text._writers(bundle, tokenizer)] == [first] * SEQUENCES
