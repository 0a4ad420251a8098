"""Which precision fits which target: choices, limits, unknowns, and several models against each other."""

import json
from pathlib import Path

import pytest

from edgekit import build_bundle, fit_models, words
from edgekit.config.recipe import PRECISIONS, list_targets, load_target
from edgekit.errors import ConfigError, SourceError
from edgekit.inspect import fit
from edgekit.inspect.fit import EFFICIENCY, SYSTEM_SHARE, Limits
from edgekit.measure import PRECISION_LOSS, PRECISION_SHARE, UNSEEN
from edgekit.testing import tiny_config

TARGET = """
name = "{name}"
title = "made up"
provider = "CPUExecutionProvider"
opset = 21
precisions = ["fp32", "fp16", "int8", "int4"]
verified = "none"
shared_kv = true
"""


def config(path, **entries):
    """A folder with a configuration and nothing else: some 360 million parameters unless told otherwise."""
    path.mkdir()
    sizes = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    sizes |= {"num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192}
    (path / "config.json").write_text(json.dumps(tiny_config(**(sizes | entries))))
    return str(path)


@pytest.fixture
def model(tmp_path):
    return config(tmp_path / "model")


@pytest.fixture
def device(tmp_path):
    def write(name="device", **numbers):
        lines = [f"{key} = {value}" for key, value in numbers.items()]
        (tmp_path / f"{name}.toml").write_text(TARGET.format(name=name) + "\n".join(lines) + "\n")
        return str(tmp_path / f"{name}.toml")

    return write


def by_precision(found):
    return {option.precision: option for option in found.options}


def test_every_target_that_ships_is_asked_by_default(model):
    found = fit_models([model])
    assert [t.name for t in found.targets] == list(list_targets())
    assert len(found.options) == len(PRECISIONS) * len(found.targets)
    for target in found.targets:
        choice = next(c for c in found.choices if c.target == target.name)
        if target.memory_bytes is None:
            assert choice.precision is None
            assert "memory unknown" in choice.reason
        else:
            assert choice.precision == smallest_unseen(target.precisions)


def smallest_unseen(precisions):
    """Eight bits where they are to be had: 0.002 nats, where four give up 0.09."""
    return next((p for p in ("int8", "fp16", "fp32") if p in precisions), "int4")


def test_the_smallest_precision_whose_loss_is_not_seen_is_chosen_and_every_step_has_its_price(model, device):
    target = device(memory_bytes=10**12)
    sizes = {p: o.footprint.file for p, o in by_precision(fit_models([model], targets=[target])).items()}
    (choice,) = fit_models([model], targets=[target]).choices
    assert choice.precision == "int8"
    chosen, *others = choice.reason.split("; ")
    assert chosen == "int8 loses 0.0021 nats per token, which is not noticeable"
    assert others == [
        f"fp32: 0 nats for {words.size(sizes['fp32'] - sizes['int8'])} more",
        f"fp16: 0 nats for {words.size(sizes['fp16'] - sizes['int8'])} more",
        f"int4: 0.0884 nats for {words.size(sizes['int8'] - sizes['int4'])} less",
    ]
    small = fit_models([model], targets=[target], limits=Limits(size=sizes["int4"])).choices[0]
    assert small.precision == "int4"
    assert small.reason.startswith("int4 loses 0.0884 nats per token, the least that fits; fp32: file of")
    path = Path(target)
    path.write_text(path.read_text().replace('"int8"', '"fp16"').replace('"fp16", "fp16"', '"fp16"'))
    without = fit_models([model], targets=[target]).choices[0]
    assert without.precision == "fp16"
    assert without.reason.startswith("fp16 is lossless; fp32: 0 nats for ")


def test_what_a_precision_gives_up_is_what_ranks_models_too():
    """Both are of one measurement: shares of 0.700 nats."""
    for precision, loss in PRECISION_LOSS.items():
        assert loss == pytest.approx(PRECISION_SHARE[precision] * 406.4 / 134_515_008**0.34, abs=3e-4)
    assert PRECISION_LOSS["int8"] < UNSEEN < PRECISION_LOSS["int4"]


def test_what_does_not_fit_is_explained(model, device):
    options = by_precision(fit_models([model], targets=[device(memory_bytes=10**12)]))
    need = {p: options[p].footprint.memory.total for p in PRECISIONS}
    assert need["fp32"] == need["fp16"] > need["int8"] > need["int4"]
    for precision, room, refused in (
        ("int8", need["fp32"], 0),
        ("int8", need["int8"], 2),
        ("int4", need["int4"], 3),
        (None, need["int4"] - 10**6, 4),
    ):
        found = fit_models([model], targets=[device(memory_bytes=int(room / (1 - SYSTEM_SHARE)) + 2)])
        (choice,) = found.choices
        assert choice.precision == precision
        assert sum(bool(o.refusals) for o in found.options) == refused
        assert ("of RAM" in choice.reason) == (refused > 0)
        if refused > 1:
            assert "fp32, fp16" in choice.reason, "what is refused for one reason is told once"


def test_a_memory_limit_replaces_the_targets_share(model, device):
    poor = device(memory_bytes=10**6)
    assert fit_models([model], targets=[poor]).choices[0].precision is None
    assert fit_models([model], targets=[poor], limits=Limits(memory=10**11)).choices[0].precision == "int8"
    assert fit_models([model], targets=["cpu"], limits=Limits(memory=10**11)).choices[0].precision == "int8"


def test_a_size_limit_is_of_the_file(model, device):
    target = device(memory_bytes=10**12)
    size = by_precision(fit_models([model], targets=[target]))["int8"].footprint.file
    for limit, precision in ((size, "int8"), (size - 1, "int4")):
        found = fit_models([model], targets=[target], limits=Limits(size=limit))
        assert found.choices[0].precision == precision
        assert "file of" in by_precision(found)["fp16"].refusals[0]


def test_speed_is_bandwidth_over_bytes_and_its_low_end_must_meet_the_limit(model, device):
    target = device(memory_bytes=10**12, bandwidth_bytes_per_s="2e10")
    option = by_precision(fit_models([model], targets=[target], context=1000))["int8"]
    low, high = EFFICIENCY["int8"]
    assert option.speed.at_most == pytest.approx(2e10 / option.footprint.token)
    assert (option.speed.low, option.speed.high) == (low * option.speed.at_most, high * option.speed.at_most)
    for wanted, fits in ((option.speed.low, True), (option.speed.low * 1.001, False)):
        again = fit_models([model], targets=[target], context=1000, limits=Limits(speed=wanted))
        assert by_precision(again)["int8"].fits == fits


def test_what_is_not_known_stays_unknown(model, device):
    dark = device(memory_bytes=10**12)
    found = fit_models([model], targets=[dark])
    assert all(option.speed is None and option.fits for option in found.options)
    found = fit_models([model], targets=[dark], limits=Limits(speed=1.0))
    assert {option.unknown for option in found.options} == {("bandwidth",)}
    assert found.choices[0].precision is None
    assert "bandwidth unknown" in found.choices[0].reason


def test_context_costs_memory_and_speed_and_has_limits(model, device):
    target = device(memory_bytes=10**12, bandwidth_bytes_per_s="2e10", max_context=2048)
    short, long = (by_precision(fit_models([model], targets=[target], context=c))["int4"] for c in (512, 2048))
    assert long.footprint.memory.kv == 4 * short.footprint.memory.kv
    assert long.speed.at_most < short.speed.at_most
    assert fit_models([model], targets=[target]).models[0].context == 4096
    refused = fit_models([model], targets=[target], context=4096)
    assert refused.choices[0].reason.endswith(": the target holds 2048 tokens")
    with pytest.raises(ConfigError, match=r"`context` is 8193, but .*model holds 1 to 8192 tokens") as caught:
        fit_models([model], targets=[target], context=8193)
    assert caught.value.hint == "pass `context=8192` or less"


def test_what_a_target_cannot_run_is_a_refusal_and_not_an_error(tmp_path):
    odd = config(tmp_path / "odd", head_dim=12)
    found = fit_models([odd], targets=["raspberry-pi-5"])
    assert all(o.footprint is None and o.speed is None for o in found.options)
    assert found.choices[0].precision is None
    assert found.choices[0].reason.startswith("fp32, fp16, int8, int4: head_dim is 12")


def test_a_precision_that_the_target_does_not_take_is_not_chosen(model, device):
    path = Path(device(memory_bytes=10**12))
    path.write_text(path.read_text().replace('"fp32", "fp16", ', ""))
    found = fit_models([model], targets=[str(path)])
    assert found.choices[0].precision == "int8"
    assert "fp32, fp16: not supported by the target" in found.choices[0].reason


def test_errors_name_what_is_unknown(model, tmp_path):
    with pytest.raises(ConfigError, match="unknown target 'raspbery-pi-5'") as caught:
        fit_models([model], targets=["raspbery-pi-5"])
    assert "did you mean 'raspberry-pi-5'?" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"has no config\.json"):
        fit_models([str(tmp_path / "empty")])


def test_this_machine_is_measured_only_when_it_is_asked_for(model, monkeypatch):
    asked = []
    measure_bandwidth = fit.measure.measure_bandwidth

    def probe(threads, working_set):
        asked.append(working_set)
        return measure_bandwidth(threads, 1 << 20, repetitions=1, seconds=0.01)

    monkeypatch.setattr(fit.measure, "measure_bandwidth", probe)
    fit_models([model])
    assert asked == []
    found = fit_models([model], targets=["here"], context=64)
    (here,) = found.targets
    assert asked == [min(o.footprint.token for o in found.options)]
    assert here.memory_bytes > 10**8
    source = here.source("bandwidth_bytes_per_s")
    assert source.certainty == "measured"
    assert "best of 1" in source.text
    assert all(o.speed.at_most == here.bandwidth_bytes_per_s / o.footprint.token for o in found.options)


def test_an_npu_is_judged_by_its_own_efficiency_context_and_bytes(model):
    fitted = fit_models([model], targets=["galaxy-s24"])
    (target,) = fitted.targets
    half, int8 = (by_precision(fitted)[p] for p in ("fp16", "int8"))
    low, high = target.npu.efficiency
    for option in (half, int8):
        assert option.context == target.npu.context < fitted.models[0].context
        assert option.speed.at_most == target.bandwidth_bytes_per_s / option.footprint.token
        assert (option.speed.low, option.speed.high) == (low * option.speed.at_most, high * option.speed.at_most)
    weights = 2 * fitted.models[0].parameters
    assert half.footprint.token == weights + 2 * 32 * 5 * 64 * 2 * target.npu.context, "everything in half precision"
    assert int8.footprint.token < 0.7 * half.footprint.token
    text = " ".join(formula for _, formula in fitted.formulae)
    assert f"{low:.0%} to {high:.0%} on galaxy-s24" in text
    assert "npu.efficiency" in text
    assert "npu.efficiency" not in " ".join(f for _, f in fit_models([model], targets=["cpu"]).formulae)


def test_more_context_than_an_npus_graphs_hold_is_refused(model):
    limit = load_target("galaxy-s24").npu.context
    assert by_precision(fit_models([model], targets=["galaxy-s24"], context=limit))["int8"].fits
    refused = by_precision(fit_models([model], targets=["galaxy-s24"], context=limit + 1))["int8"]
    assert refused.refusals == (f"the NPU's graphs hold {limit} tokens",)
    assert refused.context == limit + 1


def test_several_models_are_ranked_by_what_their_bytes_buy(tmp_path, device):
    small = config(tmp_path / "small", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, head_dim=64)
    large = config(tmp_path / "large")
    target = device(memory_bytes=10**12)
    found = fit_models([small, large, small], targets=[target])
    assert [m.name for m in found.models] == [small, large], "a model that is named twice is one"
    sizes = [r.bytes for r in found.ranks]
    assert sizes == sorted(sizes)
    least = float("inf")
    for rank in found.ranks:
        assert rank.best == (rank.loss < least)
        least = min(least, rank.loss)
    assert found.best[0].model == large
    assert found.best[0].precision == "int8", "as good as fp32, as far as one can see, and smaller"
    four = next(r for r in found.ranks if (r.model, r.precision) == (large, "int4"))
    limited = fit_models([small, large], targets=[target], limits=Limits(size=four.bytes))
    assert (limited.best[0].model, limited.best[0].precision) == (large, "int4"), "more parameters at four bits"
    nothing = fit_models([small, large], targets=[target], limits=Limits(size=1))
    assert (nothing.best[0].model, nothing.best[0].precision) == ("", None)


def test_models_of_different_families_are_not_ranked(tmp_path, model):
    other = config(tmp_path / "other", model_type="qwen2")
    found = fit_models([model, other], targets=["laptop-16gb"])
    assert "different families" in found.incomparable
    assert found.ranks == found.best == ()
    assert len(found.choices) == 2
    assert fit_models([model], targets=["laptop-16gb"]).incomparable == ""


def test_formulae_hold_the_numbers_that_are_used(model):
    text = " ".join(formula for _, formula in fit_models([model], targets=["cpu"]).formulae)
    for low, high in EFFICIENCY.values():
        assert f"{low:.0%} to {high:.0%}" in text
    assert f"{1 - SYSTEM_SHARE:.0%} of the target's memory" in text


@pytest.mark.model
def test_the_real_model_on_every_target(tmp_path):
    found = fit_models(["smollm2-135m"])
    built = build_bundle("smollm2-135m", precision="int4", out=tmp_path / "out", target="raspberry-pi-5").manifest
    option = next(o for o in found.options if (o.target, o.precision) == ("raspberry-pi-5", "int4"))
    assert option.footprint.file == built.bytes
    assert built.target == load_target("raspberry-pi-5")
    sized = {t.name: t for t in found.targets if t.memory_bytes}
    best = {c.target: c.precision for c in found.choices if c.target in sized}
    assert best == {name: smallest_unseen(t.precisions) for name, t in sized.items()}
