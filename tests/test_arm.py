"""What is recommended follows from the scores; the whole check on this machine in ARM's place, and on emulated ARM."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.build.pipeline import build_bundle
from edgekit.bundle import open_bundle, record
from edgekit.bundle.reading import graph_at_level
from edgekit.cli import run
from edgekit.config.recipe import builtin_recipe
from edgekit.errors import BundleError, RunError
from edgekit.host.cache import cache_folder
from edgekit.host.origins import remember_origin
from edgekit.run import NO_KLEIDIAI, find_arm64, load_runner, this_interpreter
from edgekit.testing import tiny_checkpoint
from edgekit.types import ArmQuality, Interval, KernelScore, Quality
from edgekit.verify import arm
from edgekit.verify.arm import Rival, advise, choices, choose, verify_on_arm
from edgekit.verify.bundle import Limits

SMALL = {"tokens": 8, "window": 4}


def at(value, low=None, high=None):
    return Interval(value, value if low is None else low, value if high is None else high)


def quality(kld):
    one = at(1.0)
    return Quality(at(kld), one, one, one, one, 1.0, 1.0, "source", "text", "0", 32, 124, 256, "onnxruntime", 4)


def scored(default, plain, exact, *, plain_excess=None):
    klds = (default, plain, exact)
    excess = (at(0.0), plain_excess or at(plain - default), at(exact - default))
    scores = tuple(
        KernelScore(kernels, quality(kld), e, at(0.0), at(1.0))
        for kernels, kld, e in zip(choices(4), klds, excess, strict=True)
    )
    return ArmQuality("emulated ARM", quality(default), scores, choose(scores), None)


def said(quality, block=32, rivals=()):
    return {c.name: c.detail for c in advise(quality, block, rivals)}


def test_kernels_are_tried_at_the_bundles_level_and_at_level_0():
    assert [(k.accuracy_level, k.entries) for k in choices(4)] == [(4, ()), (4, NO_KLEIDIAI), (0, ())]
    assert [(k.accuracy_level, k.entries) for k in choices(0)] == [(0, ()), (0, NO_KLEIDIAI)]


def test_kleidiai_is_switched_off_where_it_is_surely_worse():
    found = scored(0.5, 0.1, 0.09)
    assert found.chosen.entries == NO_KLEIDIAI
    words = said(found)["kernels"]
    assert words.startswith("switch KleidiAI off")
    assert "mlas.disable_kleidiai=1" in words
    assert "0.5 " in words
    assert "0.1 " in words


@pytest.mark.parametrize(
    ("plain", "excess", "words"),
    [
        (0.11, at(0.01, 0.005, 0.02), "keep the default: KLD 0.11"),
        (0.09, at(-0.01, -0.03, 0.01), "no significant difference"),
        (0.1, at(0.0), "results are the same"),
    ],
)
def test_the_default_stays_where_it_is_not_surely_worse(plain, excess, words):
    found = scored(0.1, plain, 0.09, plain_excess=excess)
    assert found.chosen.entries == ()
    assert words in said(found)["kernels"]


def test_level_0_is_never_chosen_but_its_gain_is_told():
    found = scored(0.3, 0.31, 0.1)
    assert found.chosen.accuracy_level == 4
    words = said(found)["accuracy level"]
    assert "level 4 loses 0.2 nats" in words
    assert "accuracy_level = 0" in words
    assert said(scored(0.101, 0.102, 0.1))["accuracy level"].startswith("keep level 4")
    assert said(scored(0.1, 0.1, 0.12))["accuracy level"].startswith("keep level 4")


def test_the_block_is_judged_by_bundles_that_were_scored_beside():
    found = scored(0.3, 0.31, 0.25)
    alone = said(found, 64)["block"]
    assert "0.25 from the weights (blocks of 64), 0.05 from the activations" in alone
    assert "`beside`" in advise(found, 64)[-1].hint
    near, far = Rival("near", 32, 0.1, at(-0.2, -0.3, -0.1), 0.5), Rival("far", 128, 0.6, at(0.3, 0.2, 0.4), -0.25)
    unsure = Rival("unsure", 0, 0.05, at(-0.25, -0.6, 0.1), 0.0)
    taken = said(found, 64, (far, near, unsure))["block"]
    assert taken.startswith("use near: far (blocks of 128, -0.25 bits per weight) 0.6; near (blocks of 32, +0.50 bits")
    kept = said(found, 64, (far, unsure))["block"]
    assert kept.startswith("keep blocks of 64: ")
    assert "unsure (one block per row, +0.00 bits per weight) 0.05" in kept
    assert "block" not in said(found, None)


def test_the_gate_takes_the_better_kernels_and_says_whose_fault_a_miss_is():
    limits = Limits(0.2, 0.5)
    (passed,) = arm._gates(scored(0.5, 0.1, 0.09), limits)
    assert (passed.name, passed.status) == ("quality on arm64", "pass")
    worse = scored(0.5, 0.4, 0.09)
    (both,) = arm._gates(worse, limits)
    assert both.status == "fail"
    assert "this machine misses the limit too" in both.hint
    (alone,) = arm._gates(replace(worse, here=quality(0.1)), limits)
    assert alone.status == "fail"
    assert "on this machine too" not in alone.hint
    assert "more bits" in alone.hint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("arm") / "tiny")


@pytest.fixture(scope="module")
def made(checkpoint):
    """Do not write into it."""
    return build_bundle(str(checkpoint), precision="int4", out=checkpoint.parent / "int4")


@pytest.fixture
def bundle(made, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    remember_origin(replace(made.manifest.provenance, location=str(checkpoint)))
    return open_bundle(shutil.copytree(made.path, tmp_path / "int4"))


@pytest.fixture
def native(monkeypatch):
    """This machine in ARM's place."""
    monkeypatch.setattr(arm, "find_arm64", this_interpreter)


def statuses(verification):
    return {c.name: c.status for c in verification.checks}


def test_a_machine_against_itself(bundle, native):
    got = verify_on_arm(bundle.path, **SMALL)
    assert list(statuses(got)) == [
        "manifest", "files", "source", "arithmetic on arm64", "this machine", "arm64, default kernels",
        "arm64, without KleidiAI", "arm64, accuracy level 0", "quality on arm64", "kernels", "accuracy level", "block",
    ]  # fmt: skip
    default, plain, exact = got.arm.scores
    assert default.quality.kld_mean == got.arm.here.kld_mean
    assert (default.away.value, default.same.value) == (pytest.approx(0, abs=1e-6), 1.0)
    assert plain.excess == Interval(0.0, 0.0, 0.0)
    assert exact.quality.kld_mean != default.quality.kld_mean, "level 0 is another computation"
    assert exact.quality.accuracy_level == 0
    assert default.quality.tokens == 2 * 3
    assert got.quality is None


def test_a_graph_for_prompts_is_scored_too(checkpoint, native, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    bundle = build_bundle(str(checkpoint), recipe="fast", out=tmp_path / "fast")
    got = verify_on_arm(bundle.path, max_kld=0.0, **SMALL)
    assert statuses(got)["prompts on arm64"] == "fail"
    assert all("this machine misses the limit too" in c.hint for c in got.checks if c.status == "fail")
    assert "arm64, prompts" in statuses(got)
    prompts, (default, *_) = got.arm.prompts, got.arm.scores
    assert prompts.quality.kld_mean != default.quality.kld_mean, "it is another graph"
    assert prompts.away.value == pytest.approx(0, abs=1e-6)
    assert prompts.excess.value == pytest.approx(prompts.quality.kld_mean.value - default.quality.kld_mean.value)


def test_bundles_beside(bundle, checkpoint, native, tmp_path):
    fp32 = build_bundle(str(checkpoint), precision="fp32", out=tmp_path / "fp32")
    got = verify_on_arm(bundle.path, beside=[fp32.path], max_kld=100.0, min_top1=0.0, **SMALL)
    block = next(c for c in got.checks if c.name == "block")
    assert block.detail.startswith("use fp32: fp32 (no grid, +")
    stranger = build_bundle(
        str(tiny_checkpoint(tmp_path / "other", seed=1)), precision="int4", out=tmp_path / "stranger"
    )
    with pytest.raises(BundleError, match="another source"):
        verify_on_arm(bundle.path, beside=[stranger.path], **SMALL)


def test_without_the_source_there_is_nothing_to_compare_with(bundle, native):
    shutil.rmtree(cache_folder() / "origins")
    got = verify_on_arm(bundle.path, **SMALL)
    assert statuses(got)["quality on arm64"] == "fail"
    assert "`source`" in got.checks[-1].hint


def test_a_damaged_bundle_ends_it(bundle, native):
    with bundle.graph.open("ab") as file:
        file.write(b"x")
    assert statuses(verify_on_arm(bundle.path, **SMALL)) == {"manifest": "fail"}


def test_the_gate_the_record_and_what_opening_does_with_it(bundle, native, capsys):
    few = ["--tokens", "8", "--window", "4"]
    assert run(["verify", str(bundle.path), "--on", "arm64", *few, "--max-kld", "0"]) == 3
    assert "quality on arm64" in capsys.readouterr().err
    loose = ["--max-kld", "100", "--min-top1", "0", "--record", "--json"]
    assert run(["verify", str(bundle.path), "--on", "arm64", *few, *loose]) == 0
    document = json.loads(capsys.readouterr().out)
    kept = open_bundle(bundle.path).manifest.arm
    assert len(kept.scores) == len(document["arm"]["scores"]) == 3
    assert entry_of(bundle.path) is None
    plain = next(s.kernels for s in kept.scores if s.kernels.entries)
    record(open_bundle(bundle.path), arm=replace(kept, chosen=plain))
    assert entry_of(bundle.path) == "1"
    assert run(["inspect", str(bundle.path)]) == 0
    assert "without KleidiAI, level 4: KLD" in capsys.readouterr().out


def entry_of(path):
    """What a session of the bundle says about KleidiAI; None where nothing was set."""
    runner = load_runner(open_bundle(path))
    try:
        options = runner._tokens._handle.get_session_options()
        return options.get_session_config_entry(NO_KLEIDIAI[0][0])
    except RuntimeError:
        return None
    finally:
        runner.close()


def test_beside_needs_arm64(bundle, capsys):
    assert run(["verify", str(bundle.path), "--beside", str(bundle.path)]) == 1
    assert "--on arm64" in capsys.readouterr().err


def test_without_qemu_the_command_says_how_to_get_it(bundle, monkeypatch, tmp_path, capsys):
    from edgekit.run import arm64

    monkeypatch.setattr(arm64.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["verify", str(bundle.path), "--on", "arm64"]) == 1
    assert "hint: apt-get install qemu-user-static" in capsys.readouterr().err


def test_a_graph_at_another_level_keeps_all_but_the_level(bundle, tmp_path):
    import onnx_ir as ir

    path = tmp_path / "zero.onnx"
    path.write_bytes(graph_at_level(bundle, 0))

    def levels(file):
        nodes = [n for n in ir.load(file).graph if n.op_type == "MatMulNBits"]
        return [n.attributes["accuracy_level"].as_int() for n in nodes], len(list(ir.load(file).graph))

    (before, count), (after, same) = levels(bundle.graph), levels(path)
    assert set(before) == {4}
    assert after == [0] * len(before)
    assert count == same
    assert path.stat().st_size < bundle.graph.stat().st_size + 1000


@pytest.fixture
def emulated():
    try:
        return find_arm64()
    except RunError as error:
        pytest.skip(f"{error.message}: {error.hint}")


@pytest.mark.arm64
@pytest.mark.timeout(300)
def test_eight_tokens_on_emulated_arm(emulated, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(arm, "find_arm64", lambda: emulated)
    recipe = builtin_recipe("int4")
    assert recipe.linear
    symmetric = replace(recipe, linear=replace(recipe.linear, symmetric=True))
    bundle = build_bundle(str(checkpoint), recipe=symmetric, out=tmp_path / "int4")
    got = verify_on_arm(bundle.path, max_kld=100.0, min_top1=0.0, **SMALL)
    assert {name: status for name, status in statuses(got).items() if status not in ("pass", "info")} == {}
    default, plain, exact = got.arm.scores
    assert "aarch64" not in got.arm.here.runtime or Path("/proc/device-tree").exists()
    assert exact.away.value != default.away.value
    assert plain.quality.kld_mean != default.quality.kld_mean, "KleidiAI's are other kernels"
