"""Conversations on a real session: history, prefix reuse, interruptions."""

import dataclasses
import json
import shutil

import pytest

from edgekit.errors import RunError
from edgekit.run import Chat, Tokenizer, generate, load_runner
from edgekit.testing import CHAT_TEMPLATE, tiny_tokenizer
from edgekit.types import Sampling


@pytest.fixture(scope="module", params=["in place", "append"])
def bundle(request, tmp_path_factory, big_bundle_of):
    made = big_bundle_of(request.param)
    folder = tmp_path_factory.mktemp("chat")
    shutil.copy(made.graph, folder)
    (folder / "tokenizer.json").write_text(tiny_tokenizer())
    named = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    return dataclasses.replace(made, path=folder)


@pytest.fixture
def chat(bundle):
    with Chat(bundle, threads=1, sampling=Sampling(max_new_tokens=12), system="Be brief.") as chat:
        yield chat


def fresh_answer(bundle, messages):
    """The same turn on a new runner, with nothing cached."""
    runner, tokenizer = load_runner(bundle, threads=1), Tokenizer.of(bundle)
    prompt = tokenizer.encode(tokenizer.render_chat(messages))
    generation = generate(runner, tokenizer, prompt, Sampling(max_new_tokens=12))
    text = "".join(emitted.text for emitted in generation)
    runner.close()
    return text


def test_tokenizer_of_a_bundle(bundle):
    tokenizer = Tokenizer.of(bundle)
    assert tokenizer.eos_ids == {2, 3}
    assert tokenizer.has_chat_template
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]).endswith("<|im_start|>assistant\n")


def test_turns_equal_turns_without_a_cache(bundle, chat):
    system = {"role": "system", "content": "Be brief."}
    first = "".join(chat.ask("The quick brown fox?"))
    assert chat.finish in ("length", "eos")
    messages = [system, {"role": "user", "content": "The quick brown fox?"}]
    assert first == fresh_answer(bundle, messages)
    second = "".join(chat.ask("And Rome?"))
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "And Rome?"}]
    assert second == fresh_answer(bundle, messages)
    assert list(chat.history) == [*messages, {"role": "assistant", "content": second}]
    chat.reset()
    assert list(chat.history) == [system]
    assert "".join(chat.ask("The quick brown fox?")) == first


def test_the_cached_prefix_is_not_fed_again(chat, monkeypatch):
    list(chat.ask("Paris?"))
    held = chat._runner.length
    fed = []
    prefill = chat._runner.prefill
    monkeypatch.setattr(chat._runner, "prefill", lambda tokens: fed.append(len(tokens)) or prefill(tokens))
    list(chat.ask("Rome?"))
    prompt = chat._tokenizer.encode(chat._tokenizer.render_chat(chat.history[:-1]))
    assert len(prompt) - fed[0] > held // 2


def test_a_broken_off_answer_stays_as_far_as_it_came(chat):
    answer = chat.ask("Paris?")
    piece = next(answer)
    assert chat.history[-1] == {"role": "assistant", "content": piece}
    following = "".join(chat.ask("Rome?"))
    assert [m["role"] for m in chat.history] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.history[2]["content"] == piece
    assert chat.history[4]["content"] == following
    assert list(answer) == []


@pytest.mark.parametrize("moment", ["prefill", "step"])
def test_ctrl_c_leaves_a_whole_history(bundle, chat, monkeypatch, moment):
    before = "".join(chat.ask("Paris?"))
    kept = chat.history

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chat._runner, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(chat.ask("Rome?"))
    assert chat.finish == "cancelled"
    if moment == "prefill":
        assert chat.history == kept
    else:
        assert [m["role"] for m in chat.history] == ["system", "user", "assistant", "user", "assistant"]
    question = [*chat.history, {"role": "user", "content": "Italy?"}]
    assert "".join(chat.ask("Italy?")) == fresh_answer(bundle, question)
    assert chat.history[2]["content"] == before


def test_a_conversation_that_outgrows_the_context(chat):
    with pytest.raises(RunError, match="context of 1200"):
        list(chat.ask("fox! " * 1300))
    assert [m["role"] for m in chat.history] == ["system"]
    assert "".join(chat.ask("Paris?"))
