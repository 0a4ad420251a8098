"""The Runner on bundles that the straight line built, against transformers: same logits, same greedy tokens."""

import json

import numpy as np
import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.run import Tokenizer, generate, load_runner
from edgekit.testing import tiny_checkpoint
from edgekit.types import Sampling
from edgekit.types.generation import PREFILL_CHUNK

PROMPT = np.random.default_rng(0).integers(4, 380, PREFILL_CHUNK + 30).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", max_position_embeddings=PREFILL_CHUNK + 100)


@pytest.fixture(scope="module")
def reference(checkpoint):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prompt = torch.tensor([PROMPT])
    tokens = model.generate(prompt, max_new_tokens=40, do_sample=False, attention_mask=torch.ones_like(prompt))
    return model(prompt).logits[0].detach().numpy(), tokens[0, len(PROMPT) :].tolist()


@pytest.fixture(scope="module", params=["cpu", "portable"])
def bundle(request, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "bundle"
    return build_bundle(str(checkpoint), target=request.param, precision="fp32", out=out)


@pytest.fixture
def runner(bundle):
    runner = load_runner(bundle, threads=1)
    yield runner
    runner.close()


def test_greedy_tokens_are_transformers(bundle, runner, reference):
    generation = generate(runner, Tokenizer.of(bundle), PROMPT, Sampling(max_new_tokens=40))
    assert [emitted.token for emitted in generation] == reference[1]
    assert len(reference[1]) > 10


def test_however_a_prompt_is_fed_the_logits_are_transformers(runner, reference):
    expected, _ = reference
    close = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(runner.logits(PROMPT), expected, atol=close)
    runner.reset()
    np.testing.assert_allclose(runner.prefill(PROMPT), expected[-1], atol=close)
    runner.reset()
    for start in range(0, len(PROMPT), 100):
        last = runner.prefill(PROMPT[start : start + 100])
    np.testing.assert_allclose(last, expected[-1], atol=close)
    runner.reset()
    steps = np.stack([runner.step(token).copy() for token in PROMPT])
    np.testing.assert_allclose(steps, expected, atol=close)


def test_a_template_knows_the_tokens_that_only_this_model_names(tmp_path):
    from transformers import AutoTokenizer

    model = tiny_checkpoint(tmp_path / "model")
    file = model / "tokenizer_config.json"
    more = {
        "image_token": "<|im_end|>",
        "extra_special_tokens": {"boi_token": "<|im_start|>"},
        "messages_token": None,
        "chat_template": "{{ bos_token }}{{ image_token }}{{ boi_token }}{{ messages[0].content }}{{ eoi_token }}",
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    bundle = build_bundle(str(model), precision="int8", out=tmp_path / "bundle")
    said = [{"role": "user", "content": "Hi"}]
    expected = AutoTokenizer.from_pretrained(model).apply_chat_template(said, tokenize=False)
    assert expected.endswith("<|im_end|><|im_start|>Hi")
    assert Tokenizer.of(bundle).render_chat(said) == expected


def test_no_token_takes_the_place_of_the_messages(tmp_path):
    model = tiny_checkpoint(tmp_path / "model")
    file = model / "tokenizer_config.json"
    more = {"extra_special_tokens": {"messages": "<|im_end|>"}, "chat_template": "{{ messages[0].content }}"}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    bundle = build_bundle(str(model), precision="int8", out=tmp_path / "bundle")
    assert Tokenizer.of(bundle).render_chat([{"role": "user", "content": "Hi"}]) == "Hi"
