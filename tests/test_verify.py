"""Every check of a bundle passes on what was built, and fails on what was broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle
from edgekit.errors import MeasureError, RunError
from edgekit.host.processor import processor_class
from edgekit.record import to_json
from edgekit.source import open_model
from edgekit.source.oracle import Reader
from edgekit.testing import FakeRunner, tiny_checkpoint
from edgekit.types import Check, Rope
from edgekit.verify import bundle as verify
from edgekit.verify import decode
from edgekit.verify import text as verify_text
from edgekit.verify.bundle import verify_bundle

FAST = {"tokens": 256, "window": 64}
NAMES = ["manifest", "files", "source", "tokenizer", "chat template", "graph", "arithmetic", "decode"]
LAST = ["weights", "quality"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("EDGEKIT_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("verify") / "model")


@pytest.fixture(scope="module")
def bundles(model, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        precision: build_bundle(str(model), target="cpu", precision=precision, out=folder / precision)
        for precision in ("fp32", "int8", "int4")
    }


@pytest.fixture
def broken(bundles, tmp_path):
    """A copy of the INT4 bundle to break."""
    return open_bundle(shutil.copytree(bundles["int4"].path, tmp_path / "broken"))


def rewrite(bundle, **changes):
    manifest = replace(bundle.manifest, **changes)
    (bundle.path / "edgekit.json").write_text(to_json(manifest))
    return replace(bundle, manifest=manifest)


def names(bundle):
    """Of the checks that a bundle gets: activations are rounded at level 4 alone."""
    return [*NAMES, *(["rounding"] if bundle.manifest.accuracy_level else []), *LAST]


def check(verification, name):
    return next(c for c in verification.checks if c.name == name)


def test_every_precision_passes_and_is_as_far_from_its_source_as_its_bits(bundles):
    klds = {}
    for precision, bundle in bundles.items():
        got = verify_bundle(bundle, **FAST)
        assert [(c.name, c.status) for c in got.checks] == [(name, "pass") for name in names(bundle)]
        assert got.passed
        assert got.quality.tokens == 4 * 63
        assert (got.quality.window, got.quality.accuracy_level) == (64, bundle.manifest.recipe.accuracy_level)
        klds[precision] = got.quality.kld_mean.value
    assert klds["fp32"] < 1e-6 < klds["int8"] < klds["int4"]
    assert verify_bundle(bundles["fp32"], **FAST).quality.top1.value == 1.0


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16"])
def test_the_portable_dialect_holds_the_same_weights_in_another_layout(model, bundles, tmp_path, precision):
    bundle = build_bundle(str(model), target="portable", precision=precision, out=tmp_path / "b")
    got = verify_bundle(bundle, **FAST)
    assert [(c.name, c.status) for c in got.checks] == [(name, "pass") for name in names(bundle)]
    assert "com.microsoft" not in check(got, "graph").detail


def test_weights_that_are_not_what_was_built(bundles, model):
    """The manifest's errors made a little smaller than the truth, and a weight that the graph does not hold."""
    bundle = bundles["int4"]
    checkpoint = verify.open_model(str(model))
    good, *others = (t for t in bundle.manifest.tensors if t.grid)
    for entry in (replace(good, error=good.error * 0.99), replace(good, name="nowhere")):
        changed = replace(bundle, manifest=replace(bundle.manifest, tensors=(entry, *others)))
        got = verify._check_weights(changed, checkpoint)
        assert got.status == "fail"
        assert entry.name in got.detail


def test_the_reference_is_made_once_and_then_needs_no_source(bundles, cache, monkeypatch):
    first = verify_bundle(bundles["int8"], **FAST)
    assert list((cache / "references").glob("*.npz"))
    assert not list(cache.glob("fp32-*"))
    monkeypatch.setattr(verify, "open_model", refuse)
    second = verify_bundle(bundles["int8"], **FAST)
    assert check(second, "source").status == "skip"
    assert second.quality == first.quality


def refuse(*args, **kwargs):
    from edgekit.errors import SourceError

    raise SourceError("gone", "look elsewhere")


def test_without_source_and_reference_quality_is_skipped_unless_it_was_asked_for(bundles, monkeypatch):
    monkeypatch.setattr(verify, "open_model", refuse)
    other = {"tokens": 128, "window": 32}
    got = verify_bundle(bundles["int8"], **other)
    assert got.passed
    assert got.quality is None
    assert {c.name for c in got.checks if c.status == "skip"} == {
        "source", "tokenizer", "chat template", "weights", "quality",
    }  # fmt: skip
    assert "`source`" in check(got, "quality").hint
    for asked in ({"source": "nowhere"}, {"max_kld": 1.0}, {"min_top1": 0.1}):
        assert not verify_bundle(bundles["int8"], **other, **asked).passed


def test_limits_decide(bundles):
    assert check(verify_bundle(bundles["int4"], **FAST, max_kld=0.0), "quality").status == "fail"
    strict = check(verify_bundle(bundles["int4"], **FAST, min_top1=1.1), "quality")
    assert strict.status == "fail"
    assert "more bits" in strict.hint
    assert check(verify_bundle(bundles["int4"], **FAST, max_kld=9.0, min_top1=0.0), "quality").status == "pass"


def test_another_text(bundles, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("Paris is the capital of France. " * 200)
    got = verify_bundle(bundles["int8"], text=text, **FAST)
    assert got.quality.text == "mine.txt"
    text.write_text("too short")
    with pytest.raises(MeasureError, match=r"mine\.txt: .* need 256"):
        verify_bundle(bundles["int8"], text=text, **FAST)


def test_a_window_is_never_longer_than_the_context(bundles):
    assert verify_bundle(bundles["fp32"], tokens=1024, window=4096).quality.window == 512


def test_a_changed_byte(broken):
    file = broken.graph.with_name(broken.graph.name + "_data")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    got = verify_bundle(broken, **FAST)
    assert [(c.name, c.status) for c in got.checks] == [("manifest", "pass"), ("files", "fail")]
    assert file.name in check(got, "files").detail


def test_not_a_bundle(tmp_path):
    got = verify_bundle(tmp_path, **FAST)
    assert [(c.name, c.status) for c in got.checks] == [("manifest", "fail")]


def test_another_source_is_not_compared_with(bundles, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    got = verify_bundle(bundles["int4"], source=str(other), **FAST)
    assert check(got, "source").status == "fail"
    assert "another checkpoint" in check(got, "source").detail
    assert check(got, "tokenizer").status == "skip"


def test_another_tokenizer(bundles, model, tmp_path):
    """Built from a checkpoint with the same weights, whose tokenizer has one merge less."""
    twin = shutil.copytree(model, tmp_path / "twin")
    tokenizer = json.loads((twin / "tokenizer.json").read_text())
    del tokenizer["model"]["merges"][0]
    (twin / "tokenizer.json").write_text(json.dumps(tokenizer))
    bundle = build_bundle(str(twin), target="cpu", precision="int8", out=tmp_path / "b")
    got = verify_bundle(bundle, source=str(model), **FAST)
    assert check(got, "tokenizer").status == "fail"
    assert "test strings" in check(got, "tokenizer").detail
    assert check(got, "chat template").status == "pass"


def test_another_chat_template(model, tmp_path, cache):
    twin = shutil.copytree(model, tmp_path / "twin")
    config = json.loads((twin / "tokenizer_config.json").read_text())
    config["chat_template"] += " "
    (twin / "tokenizer_config.json").write_text(json.dumps(config))
    bundle = build_bundle(str(twin), target="cpu", precision="int8", out=tmp_path / "b")
    assert check(verify_bundle(bundle, source=str(model), **FAST), "chat template").status == "fail"


def test_an_operator_that_the_target_lacks(broken):
    lacking = replace(broken.manifest.target, lacks=frozenset({"op:MatMulNBits", "op:Nothing"}))
    got = verify_bundle(rewrite(broken, target=lacking), **FAST)
    assert check(got, "graph").status == "fail"
    assert check(got, "graph").detail == "target cpu lacks MatMulNBits"


def test_a_graph_that_does_not_load(broken):
    got = verify_bundle(rewrite(broken, target=replace(broken.manifest.target, provider="NoSuchProvider")), **FAST)
    assert check(got, "graph").status == "fail"
    assert "NoSuchProvider" in check(got, "graph").detail


@pytest.mark.parametrize(
    ("inputs", "outputs", "culprit"),
    [
        (("input_ids", "extra"), (), "extra"),
        (("attention_mask",), (), "input_ids"),
        (("input_ids", "-past_key_values.1.value"), (), "past_key_values.1.value"),
        (("input_ids",), ("-present.0.key",), "present.0.key"),
        (("input_ids",), ("hidden",), "hidden"),
    ],
)
def test_inputs_and_outputs_outside_the_contract(bundles, inputs, outputs, culprit):
    cache = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]

    def changed(names, changes):
        gone = {c[1:] for c in changes if c.startswith("-")}
        return tuple(n for n in names if n not in gone) + tuple(c for c in changes if not c.startswith("-"))

    info = SimpleNamespace(
        inputs=changed([f"past_key_values.{c}" for c in cache], inputs),
        outputs=changed(["logits", *(f"present.{c}" for c in cache)], outputs),
    )
    got = verify._check_graph(bundles["fp32"], SimpleNamespace(info=info, vocab_size=384))
    assert got.status == "fail"
    assert culprit in got.detail


def test_steps_that_do_not_agree_with_the_prompt():
    class Forgetful(FakeRunner):
        def step(self, token):
            return np.roll(super().step(token), 1)

    assert decode.check_steps(FakeRunner())[0].status == "pass"
    assert decode.check_steps(Forgetful())[0].status == "fail"
    assert decode.check_steps(FakeRunner(context_length=1))[0].status == "pass"

    class Full(FakeRunner):
        def step(self, token):
            raise RunError("full", "shorten it")

    assert decode.check_steps(Full())[0].detail == "full"
    nan = FakeRunner()
    nan._table[:] = np.nan
    assert "NaN" in decode.check_steps(nan)[0].detail


@pytest.mark.parametrize(
    ("changes", "border"),
    [
        ({"windows": (None, 100)}, 100),
        ({"rope": Rope(1e4, 8, kind="yarn", factor=4.0, original_context=90)}, 90),
        ({}, 200),
    ],
    ids=["a window", "a rope's original context", "the whole context"],
)
def test_steps_and_prompts_are_compared_across_every_border(bundles, changes, border):
    class Late(FakeRunner):
        """Wrong from some length on, unless all is fed at once."""

        wrong_from = 10**9

        def step(self, token):
            row = super().step(token)
            return np.roll(row, 1) if self.length >= self.wrong_from else row

    spec = replace(bundles["fp32"].manifest.spec, **changes)
    passed = Check("decode", "pass", "well")
    runner = Late(context_length=200)
    assert decode.check_borders(runner, spec, 256, passed).detail.startswith(f"well; within 1e-03 across {border}")
    runner.wrong_from = border
    assert f"across {border} tokens" in decode.check_borders(runner, spec, 256, passed).detail
    assert decode.check_borders(runner, spec, 256, passed).status == "fail"
    told = decode.check_borders(runner, spec, border - 1, passed)
    assert told.status == "pass"
    assert f"not tested beyond {border - 1} tokens: {border}" in told.detail


def test_a_rounding_that_moves_the_logits_too_far_fails(bundles, monkeypatch):
    monkeypatch.setattr(decode, "_ROUNDING", {"tokens": 1e-6, "prompts": 1e-6})
    got = check(verify_bundle(bundles["int4"], **FAST), "rounding")
    assert (got.status, got.hint) == ("fail", verify_text.REBUILD)
    assert "tokens" in got.detail


def test_a_cache_one_token_off_fails_by_far(bundles, monkeypatch):
    from edgekit.run import OnnxRunner

    step = OnnxRunner.step

    def late(self, token):
        if self.length > 3:
            self.rewind(self.length - 1)
        return step(self, token)

    monkeypatch.setattr(OnnxRunner, "step", late)
    got = check(verify_bundle(bundles["int4"], **FAST), "decode")
    assert got.status == "fail"


def test_the_class_of_a_recorded_quality_is_told(broken):
    got = verify_bundle(broken, **FAST)
    assert got.quality.processor_class == processor_class()
    assert "recorded" not in check(got, "arithmetic").detail
    for there, told in (("AVX9", "the recorded quality was measured on AVX9"), ("", "of an unrecorded class")):
        elsewhere = rewrite(broken, quality=replace(got.quality, processor_class=there))
        assert told in check(verify_bundle(elsewhere, **FAST), "arithmetic").detail


def test_products_that_are_wrong_here_end_it(bundles, monkeypatch):
    from edgekit.run import exactness

    monkeypatch.setattr(exactness, "_known", lambda probe, *_, **__: {})
    got = verify_bundle(bundles["int4"], **FAST)
    graph = check(got, "graph")
    assert graph.status == "fail"
    assert "wrong sums" in graph.detail
    assert "fp16" in graph.hint


LLAMA = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "pre_tokenizer": None,
    "decoder": {"type": "Fuse"},
}
"""What Llama 2's tokenizer.json does before it merges."""


def checked_tokenizer(folder, tmp_path):
    bundle = build_bundle(str(folder), target="cpu", precision="int8", out=tmp_path / "bundle")
    return bundle, check(verify_bundle(bundle, **FAST), "tokenizer")


def as_llama(folder):
    """Make a model's tokenizer one of LlamaTokenizer's class with Llama 2's way of spaces."""
    content = json.loads((folder / "tokenizer.json").read_text()) | LLAMA
    vocabulary = content["model"]["vocab"]
    content["model"] |= {
        "vocab": {token.replace("Ġ", "▁"): i for token, i in vocabulary.items()},
        "merges": [[part.replace("Ġ", "▁") for part in merge] for merge in content["model"]["merges"]],
        "unk_token": "<unk>",
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "LlamaTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_library_that_reads_the_source_differently_is_named(cache, tmp_path):
    """transformers 5 takes a LlamaTokenizer's vocabulary and cuts texts its own way; 4.57 reads the file."""
    folder = tiny_checkpoint(tmp_path / "m")
    as_llama(folder)
    _, found = checked_tokenizer(folder, tmp_path)
    assert (found.status, found.hint) == ("pass", "")
    if int(version("transformers").split(".")[0]) >= 5:
        said = "agrees with tokenizer.json as it is, unlike the source's own library: transformers 5"
        assert found.detail.startswith(said)
        assert "LlamaTokenizer splits" in found.detail


def test_build_again_is_said_where_that_mends_it(cache, tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "m")
    bundle, _ = checked_tokenizer(folder, tmp_path)
    content = json.loads((bundle.path / "tokenizer.json").read_text())
    content["model"]["merges"].pop(0)
    (bundle.path / "tokenizer.json").write_text(json.dumps(content))
    found = verify_text.check_tokenizer(bundle, open_model(str(folder)))
    assert (found.status, found.hint) == ("fail", verify_text.REBUILD)
    wrong = Reader("somebody", lambda text: [1] * len(text))
    monkeypatch.setattr(verify_text, "source_readers", lambda _checkpoint: (wrong,))
    built = build_bundle(str(folder), target="cpu", precision="int8", out=tmp_path / "again")
    found = verify_text.check_tokenizer(built, open_model(str(folder)))
    assert found.status == "fail"
    assert "somebody splits" in found.detail
    assert "a rebuild would not change them" in found.hint
