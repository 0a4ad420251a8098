from dataclasses import replace

import pytest

from edgekit.measure import FORMULA, PRECISION_SHARE, estimate_loss, why_incomparable
from tests.made import spec


def test_loss_falls_with_parameters_and_rises_with_what_a_precision_costs():
    assert estimate_loss(10**9, "fp32") == pytest.approx(406.4 / (10**9) ** 0.34)
    added = estimate_loss(134_515_008, "int4") - estimate_loss(134_515_008, "fp32")
    assert added == pytest.approx(0.0884, rel=0.01), "what SmolLM2-135M lost"
    assert estimate_loss(360_000_000, "fp16") < estimate_loss(135_000_000, "fp32")
    assert f"{PRECISION_SHARE['int8']:.1%} more at int8" in FORMULA


@pytest.mark.parametrize("millions", [135, 360, 1700, 8000, 40000])
def test_four_bits_and_more_parameters_beat_sixteen_bits(millions):
    """What Dettmers and Zettlemoyer measured; with 4.57 bits a weight the bytes are the same."""
    assert estimate_loss(int(millions * 3.5e6), "int4") < estimate_loss(int(millions * 1e6), "fp16")


def test_models_compare_within_one_family_one_vocabulary_and_the_range_of_the_fit():
    one = spec()
    sizes = (135_000_000, 360_000_000)
    assert why_incomparable([one, one], sizes) == ""
    padded = replace(one, vocab_size=one.vocab_size + 128)
    assert why_incomparable([one, padded], sizes) == ""
    assert "families (llama, qwen2)" in why_incomparable([one, replace(one, architecture="qwen2")], sizes)
    assert "vocabularies differ (49,152 and 128,256" in why_incomparable([one, replace(one, vocab_size=128256)], sizes)
    assert "1,000,000 parameters are outside" in why_incomparable([one, one], (1_000_000, 360_000_000))
    # What is exactly at a limit is within it.
    small, large = replace(one, vocab_size=10_000), replace(one, vocab_size=10_100)
    assert why_incomparable([small, large], (70_000_000, 16_000_000_000)) == ""
    assert "differ" in why_incomparable([small, replace(large, vocab_size=10_101)], sizes)
    for outside in (69_999_999, 16_000_000_001):
        assert "outside" in why_incomparable([one, one], (outside, 360_000_000))
