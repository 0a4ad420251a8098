"""Known sums choose the session's entries, once a machine; what stays wrong is refused or goes another way."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path

import onnx
import pytest

from edgekit import build_bundle
from edgekit.errors import RunError
from edgekit.graph import probes
from edgekit.host.arithmetic import NOTHING, Arithmetic
from edgekit.run import Interpreter, exactness, load_runner, probing, this_interpreter
from edgekit.run.exactness import (
    PROMPT_MATMULS,
    UNSIGNED_WEIGHTS,
    decoder_matmuls,
    describe_arithmetic,
    find_arithmetic,
    survey,
)
from edgekit.run.runtime import onnxruntime
from edgekit.testing import tiny_checkpoint
from edgekit.types import Grid

FILES = sorted(exactness.PROBES.glob("*.onnx"))
SUMS = {"a": frozenset({"one", "two"}), "b": frozenset({"three"})}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    exactness._here.cache_clear()
    yield tmp_path / "cache" / "exactness"
    exactness._here.cache_clear()


@pytest.fixture(scope="module")
def fast(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exact")
    return build_bundle(str(tiny_checkpoint(folder / "model")), recipe="fast", out=folder / "fast")


@pytest.fixture
def answers(monkeypatch):
    """A runtime that knows which sums come out: by probe and remedy, None where it does not load."""
    told = {}

    def known(probe, entries, **_):
        return told.get((probe, entries), dict.fromkeys(SUMS.get(probe, ()), True))

    monkeypatch.setattr(exactness, "_known", known)
    return told


def names_in(path):
    return {output.name for output in onnx.load(path).graph.output}


def test_the_files_are_what_the_generator_makes():
    made = probes.make_probes()
    assert [path.stem for path in FILES] == sorted(made)
    for path in FILES:
        found = onnx.load(path)
        assert found == made[path.stem], f"python -m edgekit.graph.probes writes {path.name} anew"
    whole = sha256(b"".join(path.read_bytes() for path in FILES)).hexdigest()
    assert (exactness.PROBES / "sha256").read_text().strip() == whole


def test_each_kind_of_product_stands_in_a_probe():
    names = set().union(*map(names_in, FILES))
    for bits, block, zeros, level, rows in product(
        (2, 4, 8), (16, 32, 64, 128, 256), ("symmetric", "zero points"), range(5), ("1 row", "16 rows")
    ):
        if bits == 2 and level not in probes.NARROW_LEVELS:
            continue
        assert f"MatMulNBits, {bits} bits, block {block}, {zeros}, float32, level {level}, {rows}" in names
        assert f"GatherBlockQuantized, {bits} bits, block {block}, {zeros}" in names
    for x, w, rows in product(("uint8", "int8"), ("uint8", "int8"), ("1 row", "16 rows")):
        assert f"MatMulInteger, {x} x {w}, {rows}" in names
        assert f"QDQ MatMul, {x} x {w}, 16 rows" in names
    assert PROMPT_MATMULS["prompt_matmul"] <= names_in(exactness.PROBES / "prompt_matmul.onnx")


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("lacks", [frozenset(), frozenset({"op:MatMulNBits", "op:GatherBlockQuantized"})])
def test_whatever_a_bundle_multiplies_is_in_a_probe(fast, level, lacks):
    manifest = fast.manifest
    manifest = replace(
        manifest,
        recipe=replace(manifest.recipe, accuracy_level=level),
        target=replace(manifest.target, lacks=lacks, accuracy_level=None),
    )
    widths = (4, 8) if lacks else (2, 4, 8)
    for bits, block, symmetric in product(widths, (0, 16, 32, 48, 64, 128, 256, 512), (True, False)):
        grid = Grid(bits, block, symmetric)
        products = decoder_matmuls(replace(manifest, tensors=tuple(replace(t, grid=grid) for t in manifest.tensors)))
        assert products
        for probe, names in products.items():
            assert names <= names_in(exactness.PROBES / f"{probe}.onnx")


def test_a_model_in_floating_point_is_not_probed(fast, cache):
    manifest = replace(fast.manifest, tensors=tuple(replace(t, grid=None) for t in fast.manifest.tensors))
    assert find_arithmetic(decoder_matmuls(manifest)) == NOTHING
    assert not cache.exists()


def test_a_wrong_sum_is_told_from_a_right_one(tmp_path):
    """The same product with one known sum a step of the saturating kind away."""
    model = onnx.load(exactness.PROBES / "prompt_matmul.onnx")
    entries = ()
    right = probing.run_probe(onnxruntime, model.SerializeToString(), UNSIGNED_WEIGHTS)
    assert all(right.values())
    for tensor in model.graph.initializer:
        if tensor.name.startswith("known."):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[0, 0] /= 2
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert not any(probing.run_probe(onnxruntime, model.SerializeToString(), entries).values())


def test_the_first_remedy_under_which_all_is_exact(answers):
    assert find_arithmetic(SUMS) == Arithmetic((), (), 3)
    answers["a", ()] = {"one": True, "two": False}
    assert find_arithmetic(SUMS) == Arithmetic(UNSIGNED_WEIGHTS, (), 3)
    answers["b", UNSIGNED_WEIGHTS] = {"three": False}
    answers["a", UNSIGNED_WEIGHTS] = {"one": False, "two": False}
    assert find_arithmetic(SUMS) == Arithmetic((), ("two",), 3), "the fewest wrong, where none is right"


def test_a_bundles_own_entries_are_there_in_every_trial(answers):
    own = (("mlas.disable_kleidiai", "1"),)
    answers["a", own] = {"one": False, "two": True}
    assert find_arithmetic(SUMS, own).entries == UNSIGNED_WEIGHTS
    answers["a", own + UNSIGNED_WEIGHTS] = {"one": False, "two": True}
    assert find_arithmetic(SUMS, own).inexact == ("one",)


def test_what_does_not_load_is_no_remedy_and_no_fault(answers):
    answers["a", ()] = None
    assert find_arithmetic(SUMS) == Arithmetic((), (), 3)
    answers["b", ()] = {"three": False}
    answers["a", UNSIGNED_WEIGHTS] = None
    assert find_arithmetic(SUMS).inexact == ("three",)


def test_probes_run_once_a_machine(monkeypatch, cache):
    first = find_arithmetic(PROMPT_MATMULS)
    kept = sorted(cache.iterdir())
    assert kept
    monkeypatch.setattr(probing, "run_probe", None)
    assert find_arithmetic(PROMPT_MATMULS) == first
    assert sorted(cache.iterdir()) == kept


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(exactness, "identify_processor", lambda _: ("another", frozenset())),
        lambda patch: patch.setattr(exactness, "identify_processor", lambda _: ("", frozenset({"avx2"}))),
        lambda patch: patch.setattr(exactness.onnxruntime, "__version__", "9.9"),
    ],
    ids=["processor", "flags", "onnxruntime"],
)
def test_another_machine_or_runtime_is_probed_anew(change, monkeypatch, cache):
    find_arithmetic(PROMPT_MATMULS)
    before = set(cache.iterdir())
    change(monkeypatch)
    exactness._here.cache_clear()
    find_arithmetic(PROMPT_MATMULS)
    assert set(cache.iterdir()) > before


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", '"x"', '{"a": 1}', "7", "\x00", "[" * 100_000])
def test_a_damaged_cache_is_probed_anew(text, cache):
    first = find_arithmetic(PROMPT_MATMULS)
    for path in cache.iterdir():
        path.write_text(text)
    assert find_arithmetic(PROMPT_MATMULS) == first


def test_a_cache_that_cannot_be_written_costs_the_probe_alone(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "file"))
    assert find_arithmetic(PROMPT_MATMULS).exact


def test_a_full_disk_leaves_nothing_half_made(cache, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert find_arithmetic(PROMPT_MATMULS).exact
    assert list(cache.iterdir()) == []


def test_prompts_that_nothing_makes_exact_run_on_the_decoders_graph(fast, monkeypatch):
    known = exactness._known
    wrong = dict.fromkeys(PROMPT_MATMULS["prompt_matmul"], False)
    monkeypatch.setattr(
        exactness, "_known", lambda probe, *a, **k: wrong if probe == "prompt_matmul" else known(probe, *a, **k)
    )
    runner = load_runner(fast)
    assert runner.settings.prompt_graph == "decoder"
    assert "decoder's graph" in runner.arithmetic
    runner.close()


def test_a_decoder_that_nothing_makes_exact_is_refused(fast, monkeypatch):
    monkeypatch.setattr(exactness, "_known", lambda *_, **__: {})
    with pytest.raises(RunError, match=r"onnxruntime .* computes wrong sums on this processor .*MatMulNBits") as caught:
        load_runner(fast)
    assert "--precision fp16" in caught.value.hint


def test_the_entries_reach_the_session_of_prompts_alone(fast, monkeypatch):
    known = exactness._known

    def saturating(probe, entries, **options):
        if probe == "prompt_matmul":
            return dict.fromkeys(PROMPT_MATMULS[probe], entries[-1:] == UNSIGNED_WEIGHTS)
        return known(probe, entries, **options)

    monkeypatch.setattr(exactness, "_known", saturating)
    runner = load_runner(fast)
    key, value = UNSIGNED_WEIGHTS[0]
    assert "unsigned weights" in runner.arithmetic
    assert runner._prompts._handle.get_session_options().get_session_config_entry(key) == value
    with pytest.raises(RuntimeError):
        runner._tokens._handle.get_session_options().get_session_config_entry(key)
    runner.close()


def test_what_was_chosen_is_said():
    exact, unsigned = Arithmetic((), (), 2), Arithmetic(UNSIGNED_WEIGHTS, (), 2)
    assert describe_arithmetic(NOTHING, NOTHING) == "floating point"
    assert describe_arithmetic(exact, exact) == "exact by known sums"
    assert "unsigned weights" in describe_arithmetic(exact, unsigned)
    assert "decoder's graph" in describe_arithmetic(exact, Arithmetic((), ("x",), 2))


def test_a_survey_says_of_every_product_what_it_is_worth():
    found = survey(this_interpreter())
    assert [s.probe for s in found] == [path.stem for path in FILES]
    assert sum(len(s.sums) for s in found) == sum(len(names_in(path)) for path in FILES)


def interpreter(tmp_path, script):
    """A Python that a shell script stands for; its first argument is the program."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\nshift\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return Interpreter("a made-up machine", (str(path),), processor_class="NEON")


def test_a_probe_that_ends_the_process_is_named_and_the_others_go_on(tmp_path):
    dies = FILES[3]
    script = (
        f'for f in "$@"; do case "$f" in *=*) ;; {dies}) kill -ILL $$ ;; '
        '*) echo "[\\"$f\\", {\\"x\\": true, \\"y\\": false}]" ;; esac; done'
    )
    found = survey(interpreter(tmp_path, script))
    assert [s.probe for s in found if s.died] == [dies.stem]
    assert len(found) == len(FILES)
    told = exactness.check_survey("arithmetic", interpreter(tmp_path, script)).detail
    n = len(FILES) - 1
    assert told.startswith(f"NEON: {n} of {2 * n} integer matmuls are exact")
    assert f"crashed: {dies.stem}" in told
    assert "wrong: y" in told


def test_probes_that_end_early_without_a_reason_are_an_error(tmp_path):
    with pytest.raises(RunError, match="ended early"):
        survey(interpreter(tmp_path, "exit 0"))


def test_the_program_says_null_of_what_does_not_load(tmp_path, capsys):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    probing.main(str(tmp_path / "bad.onnx"), "session.x64quantprecision=1", str(FILES[0]))
    bad, good = map(json.loads, capsys.readouterr().out.splitlines())
    assert bad == [str(tmp_path / "bad.onnx"), None]
    assert Path(good[0]) == FILES[0]
    assert all(good[1].values())
