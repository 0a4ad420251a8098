"""longrope has two lists of factors. Whatever way a sequence crosses the border between them, all keys have the same.

As transformers' ``generate()`` of Phi3 has it, which makes the cache again when an answer crosses the border.
"""

import numpy as np
import pytest

from edgekit.build.pipeline import ForNpu, build_bundle
from edgekit.errors import ConfigError
from edgekit.routing.device import LocalModel
from edgekit.routing.prepare import encode_prompt
from edgekit.run import HeldPrompt, Tokenizer, choose_settings, generate, load_runner
from edgekit.testing import tiny_checkpoint
from edgekit.types import Sampling
from edgekit.types.routing import Request
from edgekit.verify.bundle import verify_bundle

torch = pytest.importorskip("torch")

BORDER, CONTEXT = 40, 120
IDS = np.random.default_rng(0).integers(4, 380, CONTEXT).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import Phi3Config, Phi3ForCausalLM

    path = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")
    torch.manual_seed(3)
    config = Phi3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=384,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=BORDER,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1000.0,
            "original_max_position_embeddings": BORDER,
            "short_factor": [1.0 + 0.2 * i for i in range(8)],
            "long_factor": [3.0 + 0.9 * i for i in range(8)],
        },
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    for file in path.glob("*.safetensors*"):
        file.unlink()
    Phi3ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["cpu", "portable"])
def bundle(request, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "bundle"
    return build_bundle(str(checkpoint), target=request.param, precision="fp32", out=out)


@pytest.fixture(params=[16, 128], ids=["in chunks", "at once"])
def runner(request, bundle):
    settings = choose_settings(bundle.manifest, threads=1)
    runner = load_runner(bundle, settings=type(settings)(**{**vars(settings), "prefill_chunk": request.param}))
    yield runner
    runner.close()


def alone(model, ids):
    """Logits of a sequence read at once."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def close(found, expected):
    assert np.abs(np.asarray(found) - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("length", [BORDER - 1, BORDER, BORDER + 1, CONTEXT - 1])
def test_prompts(length, model, runner):
    expected = alone(model, IDS[:length])
    close(runner.logits(IDS[:length]), expected)
    runner.reset()
    close(runner.prefill(IDS[:length]), expected[-1])


def test_every_step_sees_the_keys_that_its_length_asks_for(model, runner):
    runner.prefill(IDS[:20])
    for at in range(20, 70):
        close(runner.step(IDS[at]), alone(model, IDS[: at + 1])[-1])
    assert runner.length == 70


def test_the_border_is_felt(model):
    """Without it the comparisons here were idle."""
    longer, shorter = alone(model, IDS[: BORDER + 1])[:BORDER], alone(model, IDS[:BORDER])
    assert np.abs(longer - shorter).max() > 0.05 * np.abs(shorter).max()


@pytest.mark.parametrize("start", [5, BORDER - 1, BORDER, BORDER + 3])
def test_generate_across_the_border_is_transformers(start, model, runner, bundle):
    prompt = torch.tensor([IDS[:start]])
    expected = model.generate(
        prompt, max_new_tokens=60, do_sample=False, attention_mask=torch.ones_like(prompt), eos_token_id=None
    )[0, start:].tolist()
    tokenizer = Tokenizer.of(bundle)
    tokenizer.eos_ids = frozenset()
    for lookup in (False, True):
        found = [e.token for e in generate(runner, tokenizer, IDS[:start], Sampling(max_new_tokens=60), lookup=lookup)]
        assert found == expected


def test_back_over_the_border(model, runner):
    runner.prefill(IDS[:60])
    runner.rewind(30)
    close(runner.prefill(IDS[70:75]), alone(model, IDS[:30] + IDS[70:75])[-1])
    runner.prefill(IDS[:20])
    close(runner.step(7), alone(model, IDS[:30] + IDS[70:75] + IDS[:20] + [7])[-1])


def test_a_second_prompt_profits_of_the_first(model, runner, bundle):
    held = HeldPrompt(runner, Tokenizer.of(bundle))
    for length in (60, 25, 45):
        [emitted] = held.generate(IDS[:length], Sampling(max_new_tokens=1))
        assert emitted.token == alone(model, IDS[:length])[-1].argmax()
        assert runner.length == length


def test_drafts_end_at_the_border(model, runner):
    runner.prefill(IDS[: BORDER - 3])
    assert runner.room == 3
    close(runner.verify(IDS[BORDER - 3 : BORDER]), alone(model, IDS[:BORDER])[-3:])
    assert runner.room == CONTEXT - BORDER
    close(runner.verify(IDS[BORDER : BORDER + 4]), alone(model, IDS[: BORDER + 4])[-4:])


@pytest.mark.parametrize("start", [BORDER - 18, BORDER - 1, BORDER])
def test_a_second_opinion_crosses_the_border(start, model, bundle):
    tokenizer = Tokenizer.of(bundle)
    request, text = Request(prompt=("~#@%^&" * BORDER)[:start]), "@^~%The fox, 12345, #&~@ jumps!"
    prompt, answer = encode_prompt(tokenizer, request), tokenizer.encode(text)
    assert len(prompt) == start < BORDER + 1 < start + len(answer)
    rows = [alone(model, prompt + answer[:i])[-1].astype(np.float64) for i in range(len(answer))]
    expected = np.mean([row[token] - np.log(np.exp(row).sum()) for row, token in zip(rows, answer, strict=True)])
    with LocalModel(bundle, threads=1) as local:
        assert local.mean_logprob(request, text) == pytest.approx(expected, rel=1e-4)


def test_verify_crosses_the_border(bundle, checkpoint):
    found = verify_bundle(bundle, source=str(checkpoint), tokens=256, window=64)
    decode = next(check for check in found.checks if check.name == "decode")
    assert decode.status == "pass"
    assert f"across {BORDER}, {CONTEXT} tokens" in decode.detail


def test_an_npus_cache_ends_at_the_border(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=f"longrope at {BORDER}: beyond"):
        build_bundle(str(checkpoint), target="galaxy-s24", out=tmp_path / "bundle", npu=ForNpu(context=64))
