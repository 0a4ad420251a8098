"""`edgekit route explain` as a person calls it: the decision with its numbers, and nobody called."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from edgekit.cli import run
from edgekit.record import from_json, to_json
from edgekit.routing.explain import Explanation
from edgekit.types.routing import DeviceState
from tests.route.cases import GUARANTEE, calibration
from tests.test_state import measured_here

EXAMPLE = Path(__file__).parents[2] / "examples" / "routing" / "policy.toml"
QUESTION = "What is the capital of France?"


@pytest.fixture(autouse=True)
def nobody_is_called(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def explain(capsys, *arguments) -> Explanation:
    assert run(["route", "explain", *map(str, arguments), "--json"]) == 0
    return from_json(Explanation, capsys.readouterr().out)


def test_every_check_of_every_tier(bundle, policy, capsys):
    assert run(["route", "explain", str(bundle), QUESTION, "--policy", str(policy), "--max-new-tokens", "64"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].split() == ["answers", "device"]
    findings = lines[next(i for i, line in enumerate(lines) if "outcome" in line) :]
    for name, checks in (("device", 8), ("edge-box", 7), ("private-cloud", 7), ("standard", 7), ("premium", 7)):
        rows = [line for line in findings if line.startswith(f"{name} ")]
        assert len(rows) == checks, name
    for said in (
        "edge-box, private-cloud, standard, premium",
        "none recorded",
        "not known: there is no measurement",
        "route calibrate",
    ):
        assert said in captured.out
    explained = explain(capsys, bundle, QUESTION, "--policy", policy, "--max-new-tokens", 64)
    assert (explained.verdict.tier, explained.verdict.code, explained.language) == ("device", "local", "en")
    assert explained.counted == {"device"}
    assert dict(explained.expected)["standard"].seconds == pytest.approx(0.5 + 63 / 90)


def test_requests_say_how_far_they_go(bundle, policy, capsys):
    arguments = (bundle, "the patient's question " * 200, "--policy", policy)
    assert explain(capsys, *arguments).verdict.ladder == ()
    kept = explain(capsys, bundle, QUESTION, "--policy", policy, "--local-only")
    assert kept.verdict.ladder == ()
    assert "local-only" in next(f for f in kept.verdict.findings if f.tier == "premium").detail
    text = policy.read_text().replace('ceiling = "third-party"', 'ceiling = "private"')
    policy.write_text(text)
    assert explain(capsys, bundle, QUESTION, "--policy", policy).verdict.ladder == ("edge-box", "private-cloud")
    lifted = explain(capsys, bundle, QUESTION, "--policy", policy, "--cloud-ok")
    assert lifted.verdict.ladder == ("edge-box", "private-cloud", "standard", "premium")


def test_a_prompt_that_does_not_fit(bundle, policy, capsys):
    long = explain(capsys, bundle, "word " * 600, "--policy", policy)
    assert (long.verdict.tier, long.verdict.code) == ("edge-box", "context")
    assert "leave no room in the device's context of 512" in long.verdict.reason


def test_a_state_in_the_place_of_this_machines(bundle, policy, tmp_path, capsys):
    file = tmp_path / "state.json"
    low = DeviceState(512, 8 << 30, 1 << 20, battery_percent=5.0, on_battery=True)
    file.write_text(to_json(low))
    explained = explain(capsys, bundle, QUESTION, "--policy", policy, "--state", file)
    assert (explained.verdict.tier, explained.verdict.code, explained.state) == ("edge-box", "battery", low)
    file.write_text('{"context": "much"}')
    assert run(["route", "explain", str(bundle), QUESTION, "--policy", str(policy), "--state", str(file)]) == 1
    assert "not a state" in capsys.readouterr().err


def test_a_schema(bundle, policy, tmp_path, capsys):
    file = tmp_path / "schema.json"
    file.write_text('{"type": "object"}')
    explained = explain(capsys, bundle, QUESTION, "--policy", policy, "--schema", file)
    assert "json-schema" in next(f for f in explained.verdict.findings if f.check == "capability").detail
    for content, said in ((b'{"type": "objekt"}', "is not valid"), (b"\xff", "not UTF-8")):
        file.write_bytes(content)
        assert run(["route", "explain", str(bundle), QUESTION, "--policy", str(policy), "--schema", str(file)]) == 1
        err = capsys.readouterr().err
        assert said in err
        assert "hint:" in err


def test_numbers_of_this_machine(bundle, policy, tmp_path, capsys):
    from dataclasses import replace

    from edgekit.bundle import open_bundle, record
    from tests import made

    opened = open_bundle(shutil.copytree(bundle, tmp_path / "bundle"))
    measured = replace(opened, manifest=replace(opened.manifest, latency=made.measurement(50.0, "int4")))
    record(opened, latency=measured_here(measured).manifest.latency)
    assert run(["route", "explain", str(opened.path), QUESTION, "--policy", str(policy)]) == 0
    shown = capsys.readouterr().out
    assert "2026-01-02" in shown
    assert "no meter" in shown
    explained = explain(capsys, opened.path, QUESTION, "--policy", policy, "--max-new-tokens", 256)
    latency = next(f for f in explained.verdict.findings if (f.tier, f.check) == ("device", "latency"))
    assert latency.outcome == "pass"
    assert latency.value == dict(explained.expected)["device"].seconds
    # A calibration is told, and a policy that goes beyond its guarantee refused.
    record(open_bundle(opened.path), calibration=calibration(guarantee=GUARANTEE))
    assert run(["route", "explain", str(opened.path), QUESTION, "--policy", str(policy)]) == 1
    assert "most_wrong is 0.3" in capsys.readouterr().err
    policy.write_text(policy.read_text().replace("most_wrong = 0.3", "most_wrong = 0.2"))
    assert "up to P(wrong) = 0.20" in explain(capsys, opened.path, QUESTION, "--policy", policy).calibration


def test_what_is_refused(bundle, policy, capsys):
    wrong = policy.with_name("wrong.toml")
    wrong.write_text("tiers = []")
    for arguments, said in (
        (["--policy", str(policy), "--local-only", "--cloud-ok"], "exclude each other"),
        (["--policy", str(policy.with_name("absent.toml"))], "absent.toml not found"),
        (["--policy", str(wrong)], "unknown key 'tiers'"),
        ([], "--policy"),
    ):
        assert run(["route", "explain", str(bundle), QUESTION, *arguments]) == 1
        captured = capsys.readouterr()
        assert said in captured.err
        assert "hint:" in captured.err
    assert run(["route", "explain", "absent", QUESTION, "--policy", str(policy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["exit_code"] == 1
