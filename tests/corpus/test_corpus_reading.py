"""Sources of text, their windows of tokens and their card."""

from __future__ import annotations

import json
import re
import tracemalloc

import numpy as np
import pytest

from edgekit import measure
from edgekit.corpus import PACKAGED, SELF, read_corpus
from edgekit.corpus.packing import ENDS, Encoder, draw, spread
from edgekit.errors import ConfigError
from edgekit.record import from_json, to_json
from edgekit.run import Tokenizer
from edgekit.source import open_model
from edgekit.testing import CHAT_TEMPLATE, tiny_checkpoint
from edgekit.types.data import DataCard

WINDOW = 32
END = 2
"""The tiny model's end token."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(str(tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")))


@pytest.fixture(scope="module")
def decode(model):
    tokenizer = Tokenizer.of_checkpoint(model)
    return lambda rows: [tokenizer.decode(row.tolist(), special=True) for row in rows]


def sentences(start, stop, word="fox"):
    return "\n".join(f"The {word} number {i} jumps over the lazy dog {i * 7 % 1000}." for i in range(start, stop))


def write_lines(path, documents):
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return str(path)


def read(named, model, **options):
    return read_corpus(named, model, **{"tokens": 8 * WINDOW, "window": WINDOW, **options})


# --- what is read ---------------------------------------------------------------------------------


def test_a_text_s_windows_are_cut_from_it_and_spread_over_its_length(model, decode, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(sentences(0, 2000))
    corpus = read([str(path)], model)
    assert corpus.train.shape == (8, WINDOW)
    assert corpus.train.dtype == np.int64
    content = path.read_text()
    places = sorted(content.index(text) / len(content) for text in decode(corpus.train))
    assert np.diff([0.0, *places, 1.0]).max() < 0.25


@pytest.mark.parametrize("letter", ["é", "字", "🙂"])
def test_sections_are_cut_between_characters(letter, model, decode, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(letter * 3001)
    corpus = read([str(path)], model, tokens=10**6)
    ids = corpus.train[corpus.train != END]
    of_one = len(Tokenizer.of_checkpoint(model).encode(letter))
    assert len(ids) > (3001 * of_one) - WINDOW - of_one
    assert set(ids.tolist()) <= set(Tokenizer.of_checkpoint(model).encode(letter))


def test_all_tokens_of_a_short_text_are_used_once(model, decode, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(sentences(0, 60))
    corpus = read([str(path)], model, tokens=10**6)
    whole = Tokenizer.of_checkpoint(model).encode(path.read_text())
    kept = corpus.train[corpus.train != END]
    assert len(whole) - WINDOW <= kept.size <= len(whole) + 5
    assert np.abs(np.bincount(kept, minlength=384) - np.bincount(whole, minlength=384)).sum() < 2 * WINDOW


def test_short_documents_are_packed_and_end_with_the_end_token(model, decode, tmp_path):
    named = write_lines(tmp_path / "a.jsonl", [{"text": f"Document {i}."} for i in range(200)])
    corpus = read([named], model, tokens=500)
    text = "".join(decode(corpus.train))
    assert text.count("<|im_end|>Document") > 20
    assert corpus.card.sources[0].documents > 20


def test_the_end_of_a_document_is_pretraining_s_where_the_tokenizer_has_it(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    document = json.loads((folder / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["content"] = ENDS[0] if token["content"] == "<pad>" else token["content"]
    vocabulary = document["model"]["vocab"]
    vocabulary[ENDS[0]] = vocabulary.pop("<pad>")
    (folder / "tokenizer.json").write_text(json.dumps(document))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": ENDS[0]}))
    assert Encoder(open_model(str(folder))).end == 3


def test_documents_begin_with_what_the_tokenizer_puts_there(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    document = json.loads((folder / "tokenizer.json").read_text())
    bos = {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    document["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {"<|im_start|>": bos},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    named = write_lines(tmp_path / "a.jsonl", [{"text": f"Document {i}."} for i in range(50)])
    corpus = read([named], open_model(str(folder)), tokens=200)
    ends = np.flatnonzero(corpus.train[:, :-1].ravel() == END)
    assert (corpus.train == 1).sum() > 5
    assert len(ends) > 5


def test_conversations_go_through_the_chat_template(model, decode, tmp_path):
    talk = [{"role": "user", "content": "What jumps?"}, {"role": "assistant", "content": "The fox."}]
    named = write_lines(tmp_path / "a.jsonl", [{"messages": talk}] * 20)
    text = "".join(decode(read([named], model, tokens=WINDOW).train))
    assert "<|im_start|>user\nWhat jumps?<|im_end|>\n<|im_start|>assistant\nThe fox.<|im_end|>\n" in text
    assert "assistant\n<|im_start|>" not in text


def test_the_packaged_text_leaves_its_first_half_for_verify(model):
    corpus = read_corpus([PACKAGED], model, tokens=8192)
    assert corpus.train.shape == (16, 512)
    assert [source.licence for source in corpus.card.sources] == ["PSF-2.0", "PSF-2.0"]
    scored = measure.embedded_text().content
    scored = scored[: len(scored) // 2]
    tokenizer = Tokenizer.of_checkpoint(model)
    assert not any(tokenizer.decode(row[:200].tolist()) in scored for row in corpus.train)


def test_text_is_sampled_from_the_model(model, decode):
    asked = []

    def sample(tokens, seed):
        asked.append((tokens, seed))
        return [sentences(0, 100, "badger")]

    corpus = read([f"{SELF}=1", f"{PACKAGED}=3"], model, seed=4, sample=sample)
    assert asked == [(round((8 * WINDOW + 2 * WINDOW) / 4), 4)]
    assert [s.tokens // WINDOW for s in corpus.card.sources] == [2, 3, 3]
    assert sum("badger" in text for text in decode(corpus.train)) == 2


def test_folders_and_patterns_are_one_source(model, tmp_path):
    for folder in ("notes", "notes/deep", "notes/.hidden"):
        (tmp_path / folder).mkdir()
        for name in ("a.txt", "b.md", "c.py"):
            (tmp_path / folder / name).write_text(sentences(0, 50, f"{folder}-{name}"))
    for named, documents in (("notes", 4), ("notes/*.txt", 1), ("notes/**/*.txt", 2)):
        corpus = read([str(tmp_path / named)], model, tokens=10**6)
        assert [s.documents for s in corpus.card.sources] == [documents]
        assert corpus.card.sources[0].name == named.rpartition("/")[2]


# --- mixtures, seeds, held out --------------------------------------------------------------------


def test_weights_are_shares_of_tokens(model, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(sentences(0, 2000, name))
    corpus = read([f"{tmp_path}/a.txt=3", f"{tmp_path}/b.txt"], model)
    assert [s.tokens // WINDOW for s in corpus.card.sources] == [6, 2]
    assert [s.share for s in corpus.card.sources] == [0.75, 0.25]


def test_a_short_source_s_place_is_taken_by_the_others():
    streams = [iter([[i]] * count) for i, count in enumerate((1, 100, 100))]
    assert [len(found) for found in draw(streams, [2, 1, 1], 8)] == [1, 4, 3]


def test_a_seed_repeats_its_windows_and_another_gives_others(model, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(sentences(0, 2000))
    a, b, c = (read([str(path)], model, seed=seed) for seed in (1, 1, 2))
    assert (a.train == b.train).all()
    assert a.card == b.card
    assert not (a.train == c.train).all()
    assert a.card.sources[0].sha256 != c.card.sources[0].sha256


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13, 64, 1000])
def test_every_beginning_of_the_order_is_spread(count):
    order = spread(count, 3)
    assert sorted(order) == list(range(count))
    for first in range(4, count, 7):
        gaps = np.diff(sorted([*order[:first], order[:first].min() + count]))
        assert gaps.max() <= 4 * count / first


def test_what_is_held_out_is_whole_documents_and_never_trained_on(model, decode, tmp_path):
    texts = [f"Document {i} is about the number {i}. " * 12 for i in range(100)]
    named = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in [*texts, *texts]])
    corpus = read([named], model, tokens=10**5, held_out=0.1)

    def documents(rows):
        return {i for text in decode(rows) for i in range(100) if f"number {i}. " in text}

    held, trained = documents(corpus.held_out), documents(corpus.train)
    assert len(held) >= 5
    assert trained
    assert not held & trained
    assert corpus.card.held_out == corpus.held_out.size
    assert 0 < corpus.card.sources[0].overlapping <= 20  # the copies of those held out, not these


def test_a_long_document_is_held_out_by_section(model, decode, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text(sentences(0, 2000))
    corpus = read([str(path)], model, tokens=10**6, held_out=0.2)
    assert 0.1 < corpus.held_out.size / corpus.train.size < 0.3
    held, trained = (
        {number for text in decode(rows) for number in re.findall(r"number (\d+) jumps", text)}
        for rows in (corpus.held_out, corpus.train)
    )
    assert len(held) > 100
    assert not held & trained


# --- overlap --------------------------------------------------------------------------------------


def test_what_overlaps_evaluation_text_is_left_out_and_counted(model, decode, tmp_path):
    test_set = tmp_path / "test.txt"
    test_set.write_text("one two three four five six seven eight nine ten eleven twelve thirteen fourteen")
    leak = "ONE two, three -- four five six seven\neight nine ten eleven: twelve thirteen! " + "And more. " * 20
    near = "one two three four five six seven eight nine ten eleven twelve. " + "And less. " * 20
    named = write_lines(tmp_path / "a.jsonl", [{"text": leak}, {"text": near}] * 10)
    corpus = read([named], model, tokens=10**5, apart_from=[test_set])
    text = "".join(decode(corpus.train))
    assert "less" in text
    assert "more" not in text
    assert corpus.card.sources[0].overlapping == 10


def test_the_text_that_verify_scores_on_is_left_out(model, tmp_path):
    path = tmp_path / "stolen.txt"
    path.write_text(measure.embedded_text().content[:20_000])
    with pytest.raises(ConfigError, match=r"no window of 32 tokens is left without what overlaps other text"):
        read([str(path)], model)


# --- the card and memory --------------------------------------------------------------------------


def test_a_card_survives_json(model):
    card = read([PACKAGED], model).card
    assert from_json(DataCard, to_json(card)) == card
    assert sum(source.share for source in card.sources) == pytest.approx(1)


def test_a_large_file_is_not_held(model, tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": sentences(0, 1000)}).encode() + b"\n"
    with path.open("wb") as file:
        for _ in range(40_000_000 // len(line)):
            file.write(line)
    tracemalloc.start()
    try:
        read([str(path)], model)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("a.txt", b"", "a.txt: its text is shorter than a window of 32", "more text"),
        ("a.txt", b"Few.", "a.txt: its text is shorter than a window of 32", "more text"),
        ("a.jsonl", b'\n{"text": ""}\n', "a.jsonl: its text is shorter", "more text"),
        ("a.txt", b"x" * 2_000_000 + b"caf\xe9", "not UTF-8 at byte 2000003", "iconv"),
        ("a.jsonl", b'{"text": "one"}\n\n{"text": 2}\n', "line 3: no 'text' and no list .*, but 'text'", "skip_bad"),
        ("a.jsonl", b'{"text": "one"}\n{"text": \n', "line 2 is not valid JSON", "skip_bad"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "line 1 is not UTF-8", "skip_bad"),
        ("a.jsonl", b"[1]\n", "line 1 does not hold a JSON object", "skip_bad"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1: message 1 has no text", "skip_bad"),
        ("a.jsonl", b'{"messages": []}\n', "line 1: no 'text'", "skip_bad"),
        ("a.json", b'[{"text": "one"}]', "'.json' files are not read", "jsonl"),
        ("a.parquet", b"PAR1 and so on", "not a Parquet file", "download"),
    ],
)  # fmt: skip
def test_files_that_are_refused(name, content, message, hint, model, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read([str(tmp_path / name)], model)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("named", "message", "hint"),
    [
        (["pakaged"], "pakaged: no such file", "did you mean 'packaged'"),
        (["*.nothing"], r"no file matches '\*.nothing'", "folder"),
        (["packaged=much"], "the weight 'much' is not a number", "mine.jsonl=3"),
        (["packaged=-1"], "the weight '-1' is not a number", "mine.jsonl=3"),
        (["packaged=nan"], "the weight 'nan' is not a number", "mine.jsonl=3"),
        (["packaged=0"], "no source of text has a weight above 0", "WEIGHT"),
        ([" "], "no source of text", "packaged"),
        (["self"], "cannot be sampled", "packaged"),
        (["hub:tiny"], "'hub:tiny' is not a data set", "hub:owner/name"),
    ],
)
def test_names_that_are_refused(named, message, hint, model):
    with pytest.raises(ConfigError, match=message) as caught:
        read(named, model)
    assert hint in caught.value.hint


def test_a_near_file_is_suggested(model, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError) as caught:
        read([str(tmp_path / "notse.txt")], model)
    assert "notes.txt" in caught.value.hint


def test_numbers_out_of_range(model):
    for options in ({"tokens": 0}, {"window": 1}, {"held_out": 1.0}):
        with pytest.raises(ConfigError, match="out of range"):
            read([PACKAGED], model, **options)


def test_bad_lines_are_skipped_and_counted_on_request(model, tmp_path):
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": sentences(i, i + 3)}) for i in range(100)]
    path.write_text("\n".join([*good, "{", *good, '{"no": 1}']))
    assert read([str(path)], model, skip_bad=True).card.sources[0].bad_lines == 2


def test_a_conversation_that_the_template_refuses(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    refusing = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}" + CHAT_TEMPLATE
    )
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": refusing}))
    model = open_model(str(folder))
    talks = [[{"role": role, "content": "What jumps over the dog?"}] for role in ["user"] * 10 + ["assistant"]]
    named = write_lines(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    with pytest.raises(
        ConfigError, match=r"a\.jsonl, line 11: the chat template rejects these messages: the user begins"
    ):
        read([named], model, tokens=10**4)
    assert read([named], model, tokens=10**4, skip_bad=True).card.sources[0].bad_lines == 1


def test_a_model_without_a_chat_template(tmp_path):
    folder = tiny_checkpoint(tmp_path / "tiny")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    named = write_lines(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    with pytest.raises(ConfigError, match="line 1: the model has no chat template"):
        read([named], open_model(str(folder)))
