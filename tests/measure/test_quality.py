"""Quality against direct computation over the whole vocabulary, and intervals against simulation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgekit.errors import MeasureError
from edgekit.measure import quality
from edgekit.measure.quality import (
    bootstrap,
    compare,
    load_reference,
    make_reference,
    reference_key,
    save_reference,
    score,
    source_key,
)
from edgekit.testing import FakeRunner
from tests import made

VOCAB = 384
BUNDLE = made.bundle()
TOKENS = np.random.default_rng(1).integers(VOCAB, size=(5, 100))


class Noisy(FakeRunner):
    """A FakeRunner whose logits are off by noise: what quantization does."""

    def __init__(self, noise: float, seed: int = 0, scale: float = 3.0) -> None:
        super().__init__(VOCAB, seed=seed)
        self._table = self._table * np.float32(scale)
        self._table += noise * np.random.default_rng(7).standard_normal(self._table.shape).astype(np.float32)


def full(runner, tokens):
    """Log-probabilities [N, V] in float64 and the tokens that follow [N], the plain way."""
    rows = np.concatenate([runner.logits(w.tolist())[:-1] for w in tokens]).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(1, keepdims=True))
    return rows, tokens[:, 1:].reshape(-1)


def scored(runner, reference, **changes):
    told = {
        "text": "t",
        "text_sha256": "s",
        "reference_name": "r",
        "runtime": "onnxruntime 0",
        "accuracy_level": 4,
        "processor_class": "AVX2",
    }
    return score(runner, reference, **(told | changes))


def test_every_number_against_the_whole_vocabulary():
    source, shipped = Noisy(0.0), Noisy(0.4)
    got = scored(shipped, make_reference(source, TOKENS, top_k=VOCAB))
    p, following = full(source, TOKENS)
    q, _ = full(shipped, TOKENS)
    kld = (np.exp(p) * (p - q)).sum(1)
    at = np.arange(len(following))
    assert got.kld_mean.value == pytest.approx(kld.mean(), rel=1e-5)
    assert got.kld_p99.value == pytest.approx(np.percentile(kld, 99), rel=1e-5)
    assert got.kld_p999.value == pytest.approx(np.percentile(kld, 99.9), rel=1e-5)
    assert got.top1.value == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert got.reference_ppl == pytest.approx(np.exp(-p[at, following].mean()), rel=1e-6)
    assert got.ppl == pytest.approx(np.exp(-q[at, following].mean()), rel=1e-6)
    assert got.ppl_ratio.value == pytest.approx(got.ppl / got.reference_ppl, rel=1e-6)
    assert got.ppl_ratio.low < got.ppl_ratio.value < got.ppl_ratio.high
    assert 0 < got.top1.value < 1
    assert (got.window, got.tokens, got.top_k, got.accuracy_level) == (100, 5 * 99, VOCAB, 4)


def test_direction_is_reference_to_bundle():
    one, other = Noisy(0.0), Noisy(1.5)
    there = compare(other, make_reference(one, TOKENS)).kld.mean()
    p, _ = full(one, TOKENS)
    q, _ = full(other, TOKENS)
    forward, backward = (np.exp(p) * (p - q)).sum(1).mean(), (np.exp(q) * (q - p)).sum(1).mean()
    assert abs(there - forward) < 0.2 * abs(there - backward)


@pytest.mark.parametrize("k", [1, 4, 32, 128])
def test_truncation_never_overstates_and_nears_the_whole(k):
    source, shipped = Noisy(0.0), Noisy(0.4)
    whole = compare(shipped, make_reference(source, TOKENS, top_k=VOCAB)).kld
    cut = compare(shipped, make_reference(source, TOKENS, top_k=k)).kld
    assert (cut <= whole + 1e-6).all()
    assert cut.mean() < whole.mean()
    if k >= 128:
        assert cut.mean() > 0.95 * whole.mean()


def test_a_model_against_itself():
    got = scored(Noisy(0.0), make_reference(Noisy(0.0), TOKENS))
    assert got.kld_mean.value < 1e-7
    assert compare(Noisy(0.0), make_reference(Noisy(0.0), TOKENS)).kld.min() >= 0, "no position is nearer than itself"
    assert got.top1.value == 1.0
    assert got.ppl_ratio.value == pytest.approx(1.0, abs=1e-7)


def test_peaked_logits_whose_rest_is_next_to_nothing():
    source, shipped = Noisy(0.0, scale=300.0), Noisy(1.0, scale=300.0)
    reference = make_reference(source, TOKENS, top_k=8)
    assert np.isfinite(compare(shipped, reference).kld).all()
    everything = make_reference(source, TOKENS, top_k=VOCAB)
    assert np.isneginf(everything.rest).all()
    assert np.isfinite(compare(shipped, everything).kld).all()


def test_reference_is_small_and_comes_back_from_disk(tmp_path):
    reference = make_reference(Noisy(0.0), TOKENS, top_k=16)
    path = tmp_path / "new" / "reference.npz"
    save_reference(reference, path)
    assert [f.name for f in path.parent.iterdir()] == ["reference.npz"]
    assert path.stat().st_size < TOKENS.size * (16 * 8 + 24) + 4096
    read = load_reference(path)
    for name in ("tokens", "ids", "logprobs", "rest", "target"):
        assert (getattr(read, name) == getattr(reference, name)).all()
        assert getattr(read, name).dtype == getattr(reference, name).dtype
    assert scored(Noisy(0.2), read) == scored(Noisy(0.2), reference)


def test_a_damaged_or_missing_reference_is_made_again(tmp_path):
    path = tmp_path / "reference.npz"
    assert load_reference(path) is None
    save_reference(make_reference(Noisy(0.0), TOKENS, top_k=4), path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert load_reference(path) is None
    path.write_bytes(data.replace(b"logprobs", b"logwords"))
    assert load_reference(path) is None
    path.write_bytes(b"")
    assert load_reference(path) is None


def test_the_key_tells_everything_that_matters_apart():
    keys = {
        reference_key("a", "t", TOKENS),
        reference_key("b", "t", TOKENS),
        reference_key("a", "u", TOKENS),
        reference_key("a", "t", TOKENS + 1),
        reference_key("a", "t", TOKENS.reshape(10, 50)),
        reference_key("a", "t", TOKENS, top_k=3),
    }
    assert len(keys) == 6
    assert reference_key("a", "t", TOKENS.copy()) == reference_key("a", "t", TOKENS)


def test_windows_are_fed_one_at_a_time_to_an_empty_cache():
    fed = []

    class Spy(Noisy):
        def logits(self, tokens):
            fed.append(list(tokens))
            return super().logits(tokens)

    scored(Noisy(0.1), make_reference(Spy(0.0), TOKENS))
    assert fed == TOKENS.tolist()


def test_another_vocabulary_is_refused():
    reference = replace(make_reference(Noisy(0.0), TOKENS), vocab_size=VOCAB + 1)
    with pytest.raises(MeasureError, match=r"384 logits, but its source has 385"):
        compare(Noisy(0.0), reference)


def test_logits_that_are_not_numbers_are_refused():
    broken = Noisy(0.0)
    broken._table[:, 3] = np.nan
    with pytest.raises(MeasureError, match="NaN"):
        compare(broken, make_reference(Noisy(0.0), TOKENS))


# --- intervals --------------------------------------------------------------------------------


def mean(pool):
    return pool.mean(axis=-1)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        # Positions of one window share an offset: resampling positions would cover far too rarely.
        values = random.exponential(1.0, size=(40, 1)) + random.normal(size=(40, 10))
        interval = bootstrap(values, mean, resamples=300, seed=trial)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_of_a_percentile_is_a_loop_over_resamples_written_out():
    values = np.random.default_rng(0).normal(size=(6, 50))
    got = bootstrap(values, lambda pool: np.percentile(pool, 99, axis=-1), resamples=200, seed=5)
    draws = np.random.default_rng(5).integers(6, size=(200, 6))
    found = [np.percentile(values[d].ravel(), 99) for d in draws]
    assert got.value == pytest.approx(np.percentile(values, 99))
    assert (got.low, got.high) == pytest.approx(tuple(np.percentile(found, [2.5, 97.5])))


def test_bootstrap_in_pieces_gives_the_same(monkeypatch):
    values = np.random.default_rng(0).normal(size=(6, 50))
    whole = bootstrap(values, mean)
    monkeypatch.setattr(quality, "_POOL", 1000)
    assert bootstrap(values, mean) == whole


def test_one_window_has_no_interval():
    with pytest.raises(MeasureError, match="one window"):
        bootstrap(np.ones((1, 10)), mean)


@pytest.mark.parametrize(
    "other",
    [
        {"spec": replace(BUNDLE.manifest.spec, norm_eps=1e-6)},
        {"spec": replace(BUNDLE.manifest.spec, windows=(8,) * BUNDLE.manifest.spec.layers)},
        {"provenance": replace(BUNDLE.manifest.provenance, sha256="00" * 32)},
        {"exporter": "optimum"},
    ],
)
def test_all_that_a_source_computes_by_is_in_its_key(other):
    assert source_key(replace(BUNDLE.manifest, **other)) != source_key(BUNDLE.manifest)


def test_another_edgekit_has_keys_of_its_own(monkeypatch):
    before = source_key(BUNDLE.manifest)
    monkeypatch.setattr("edgekit.measure.quality.__version__", "9.9")
    assert source_key(BUNDLE.manifest) != before
