"""What the rule costs and saves: a tiny real model here, a real server on loopback or a file of answers there."""

import json
import shutil
from dataclasses import replace

import pytest

from edgekit import build_bundle, open_bundle
from edgekit.bundle import record
from edgekit.cli import run
from edgekit.errors import CloudError, ConfigError, RouteError
from edgekit.record import from_json
from edgekit.routing.decision import proof
from edgekit.routing.evaluation.bench import RouteBench, bench_routing, choose_cloud
from edgekit.routing.evaluation.calibrate import Binding
from edgekit.routing.evaluation.collect import collect_local
from edgekit.routing.evaluation.examples import read_examples
from edgekit.testing import serve_fake_openai, tiny_checkpoint
from edgekit.types import Energy
from edgekit.types.calibration import Calibration, Guarantee, PrefixScore, Score
from edgekit.types.routing import AnswerRules, Policy, Price, Privacy, PrivacyRule, Tier
from tests import made
from tests.cloud.loopback import serve
from tests.test_state import measured_here

N = 40
PREFIX = 3


def questions(answers=None) -> list[dict]:
    """Every second one is answered rightly by whoever gave ``answers``; every fifth holds the word secret."""
    said = answers or ["none"] * N
    return [
        {
            "id": f"q{i}", "prompt": f"{'secret ' if i % 5 == 0 else ''}{i} and then", "raw": True,
            "answer": said[i] if i % 2 else "none", "max_tokens": 6,
        }
        for i in range(N)
    ]  # fmt: skip


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def calibrated(bundle, **changes):
    """One half of the answers is below the threshold, by the model's own mean log-probability."""
    binding = Binding.of(bundle)
    score = Score(("mean_logprob",), (-1.0,), 0.0, "isotonic", ((0.0, 0.0), (10.0, 1.0)))
    made_up = Calibration(
        binding.bundle_sha256, binding.provider, binding.runtime, binding.template_sha256, "2026-01-01", "dev.jsonl",
        "0" * 64, 100, 100, 100, score, 0.3, None, None, (0.1, 0.9), None, 0.1, 0.2,
    )  # fmt: skip
    return record(bundle, calibration=replace(made_up, **changes))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A calibrated bundle, questions, and what the bundle answers. Do not write into it."""
    folder = tmp_path_factory.mktemp("route-bench")
    bundle = build_bundle(str(tiny_checkpoint(folder / "m")), precision="int4", out=folder / "b")
    plain = read_examples(write(folder / "plain.jsonl", questions()))
    said = [a.text for a in collect_local(bundle, plain, prefix_tokens=PREFIX)]
    data = write(folder / "test.jsonl", questions(said))
    local = collect_local(bundle, read_examples(data), store=folder / "store" / "local.jsonl")
    middle = sorted(-a.signals.mean_logprob for a in local)[N // 2]
    bundle = calibrated(bundle, threshold=middle / 10)
    return bundle, data, local, folder / "store"


@pytest.fixture
def bundle(world, tmp_path):
    """A copy to write into."""
    return open_bundle(shutil.copytree(world[0].path, tmp_path / "bundle"))


@pytest.fixture
def store(world, tmp_path):
    """The bundle's answers, and no endpoint's."""
    folder = tmp_path / "kept"
    folder.mkdir()
    shutil.copy(world[3] / "local.jsonl", folder)
    return folder


@pytest.fixture
def answers(world, tmp_path):
    """A cloud that is right but for the first."""
    rows = [
        {"id": q["id"], "answer": "wrong" if i == 0 else q["answer"], "seconds": 2.0, "cost": 0.01}
        for i, q in enumerate(map(json.loads, world[1].read_text().splitlines()))
    ]
    return write(tmp_path / "answers.jsonl", rows)


def bench(world, cloud, **options) -> RouteBench:
    bundle, data, _, store = world
    return bench_routing(options.pop("bundle", bundle), options.pop("data", data), cloud, store=store, **options)


def right_share(local):
    return sum(a.right for a in local) / len(local)


def test_an_answers_file_says_what_the_cloud_does(world, answers):
    bundle, _, local, _ = world
    found = bench(world, answers)
    assert (found.n, found.kept_back, found.cloud, found.data) == (N, 0, "answers.jsonl", "test.jsonl")
    assert found.proof.local_quality == right_share(local) == 0.5
    assert found.proof.cloud_quality == (N - 1) / N
    assert found.proof.priced
    assert found.price == "the file's own costs"
    names = {s.name for s in found.proof.strategies}
    assert names == {proof.ROUTER, proof.ENTROPY, proof.LOGPROB, proof.RANDOM, proof.LOCAL, proof.CLOUD, proof.ORACLE}
    assert found.proof.get(proof.RANDOM).apgr == pytest.approx(0.5, abs=1e-12)
    assert found.proof.get(proof.CLOUD).operation.cost == pytest.approx(10.0)
    assert found.proof.get(proof.CLOUD).operation.p95 == 2.0
    router = found.proof.get(proof.ROUTER).operation
    limit = bundle.manifest.calibration.threshold
    assert router.coverage == sum(-a.signals.mean_logprob / 10 <= limit for a in local) / N
    assert 0 < router.coverage < 1
    # Whoever is passed on has waited for the whole local answer.
    assert router.p95 > 2.0
    assert router.wasted > 0
    assert found.cut_off == sum(a.finish == "length" for a in local) > 0
    assert found.whole is None
    assert found.energy.startswith("not known, without a measurement")
    assert found.data_sha256 != bundle.manifest.calibration.data_sha256


def test_giving_up_early_is_shown_beside_never(world, bundle, answers):
    score = Score(("mean_logprob",), (0.0,), 0.0, "isotonic", ((0.0, 0.9),))
    early = calibrated(bundle, threshold=1.0, prefix=PrefixScore(PREFIX, score, 0.5, 1.0, 0.0))
    found = bench(world, answers, bundle=early)
    router = found.proof.get(proof.ROUTER).operation
    assert router.coverage == 0
    assert found.whole.coverage == 1
    assert found.whole.wasted == 0 < router.wasted
    # A policy that wants none gets none.
    kept = bench(world, answers, bundle=early, policy=Policy("p", answers=AnswerRules(prefix=False)))
    assert kept.whole is None
    assert kept.proof.get(proof.ROUTER).operation.coverage == 1


def test_an_endpoint_is_asked_once_for_each(world, store):
    bundle, data, _, _ = world
    with serve_fake_openai("none at all") as server:
        tier = Tier("far", "third-party", server.url, "big", price=Price(1e6, 2e6))
        found = bench_routing(bundle, data, tier, store=store)
        assert len(server.bodies) == N
        assert {b["model"] for b in server.bodies} == {"big"}
        assert found.cloud == f"big at {server.url}"
        assert found.proof.cloud_quality == 0
        assert found.proof.get(proof.ROUTER).apgr is None
        words = sum(3 + ("secret" in e.request.prompt) for e in read_examples(data)) / N
        assert found.proof.get(proof.CLOUD).operation.cost == pytest.approx(1000 * (words + 2 * 3))
        again = bench_routing(bundle, data, tier, store=store)
        assert len(server.bodies) == N
        assert again.proof.get(proof.CLOUD).operation == found.proof.get(proof.CLOUD).operation
        bench_routing(bundle, data, replace(tier, model="other"), store=store)
        assert len(server.bodies) == 2 * N


def test_what_is_private_is_never_sent(world, tmp_path):
    policy = Policy("p", privacy=Privacy(rules=(PrivacyRule("own", "secret", "device"),)))
    with serve_fake_openai("none") as server:
        tier = Tier("far", "third-party", server.url, "big")
        found = bench(world, tier, policy=policy)
        assert (found.kept_back, found.n) == (N // 5, N - N // 5)
        assert len(server.bodies) == found.n
        assert not any("secret" in json.dumps(b) for b in server.bodies)
        server.bodies.clear()
        with pytest.raises(RouteError, match="keeps all 40 examples on the device"):
            bench(world, tier, policy=Policy("p", privacy=Privacy("private")))
        assert server.bodies == []


def test_what_was_answered_before_the_endpoint_failed_is_kept(world, store):
    bundle, data, _, _ = world
    left = [7]

    def answer(connection):
        left[0] -= 1
        connection.answer("none") if left[0] >= 0 else connection.error(401, "no such key")

    with serve(answer) as server:
        tier = Tier("far", "third-party", server.url, "big", retries=0)
        with pytest.raises(CloudError, match="401"):
            bench_routing(bundle, data, tier, store=store)
        assert len((store / "cloud.jsonl").read_text().splitlines()) == 7
        left[0] = N
        bench_routing(bundle, data, tier, store=store)
        assert left[0] == 7


def test_an_endpoint_that_says_nothing_is_wrong_and_asked_on(world, store):
    said = iter(range(N))

    def answer(connection):
        connection.stream()
        connection.say(*(() if next(said) == 3 else ("none",)))
        connection.end()

    with serve(answer) as server:
        found = bench_routing(world[0], world[1], Tier("far", "third-party", server.url, "big", retries=0), store=store)
    kept = [json.loads(line)["answer"] for line in (store / "cloud.jsonl").read_text().splitlines()]
    assert [i for i, a in enumerate(kept) if not a["text"]] == [3]
    assert not kept[3]["right"]
    assert found.n == N


def test_prices_of_a_file(world, answers, tmp_path):
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    for row in rows:
        del row["cost"]
    assert not bench(world, write(tmp_path / "a.jsonl", rows)).proof.priced
    for row in rows:
        row |= {"prompt_tokens": 10, "new_tokens": 5}
    found = bench(world, write(tmp_path / "b.jsonl", rows), price=Price(1, 4))
    assert found.price == "the given price"
    assert found.proof.get(proof.CLOUD).operation.cost == pytest.approx(1000 * 30e-6)
    del rows[3]["new_tokens"]
    assert "estimated for 1 answers" in bench(world, write(tmp_path / "c.jsonl", rows), price=Price(1, 4)).price


def test_joules_are_the_power_that_was_measured(world, bundle, answers):
    energy = Energy("measured", "meter", gross_joules=60.0, seconds=10.0)
    measured = replace(bundle, manifest=replace(bundle.manifest, latency=made.measurement(50.0, "int4", energy)))
    metered = record(bundle, latency=measured_here(measured).manifest.latency)
    found = bench(world, answers, bundle=metered)
    seconds = sum(a.seconds for a in world[2]) / N
    assert found.proof.get(proof.LOCAL).operation.joules == pytest.approx(1000 * 6.0 * seconds)
    assert "measured by meter" in found.energy
    bare = Energy("none", reason="this machine has none")
    measured = replace(bundle, manifest=replace(bundle.manifest, latency=made.measurement(50.0, "int4", bare)))
    found = bench(world, answers, bundle=record(bundle, latency=measured_here(measured).manifest.latency))
    assert found.proof.get(proof.LOCAL).operation.joules is None
    assert found.energy == "not measured: this machine has none"


def test_what_does_not_fit_together_is_named(world, bundle, answers, tmp_path):
    lines = answers.read_text().splitlines()
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(lines[:-2]))
    with pytest.raises(RouteError, match="no answer to 2 of 40 examples: q38, q39"):
        bench(world, short)
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([*lines, '{"id": "q99", "answer": "x"}']))
    with pytest.raises(RouteError, match="there is no example 'q99'"):
        bench(world, other)
    with pytest.raises(RouteError, match="not found"):
        bench(world, answers, data=tmp_path / "absent.jsonl")
    seen = calibrated(bundle, data_sha256=bench(world, answers).data_sha256)
    with pytest.raises(RouteError, match="calibrated on this file"):
        bench(world, answers, bundle=seen)
    promised = calibrated(bundle, guarantee=Guarantee(0.05, 0.05, 100, 90, 0, 0.04, 0.9), threshold=0.2)
    with pytest.raises(ConfigError, match=r"most_wrong is 0\.5"):
        bench(world, answers, bundle=promised, policy=Policy("p", answers=AnswerRules(most_wrong=0.5)))


def test_a_policys_own_limit_is_the_threshold(world, answers):
    found = bench(world, answers, policy=Policy("p", answers=AnswerRules(most_wrong=0.0)))
    assert found.proof.threshold == 0
    assert found.proof.get(proof.ROUTER).operation.coverage == 0
    assert found.policy == "p"


# --- who stands for the cloud -------------------------------------------------------------------

TIERS = Policy("p", (Tier("box", "private", "http://box/v1", "m"), Tier("far", "third-party", "https://far/v1", "n")))


def test_who_stands_for_the_cloud(tmp_path, answers):
    assert choose_cloud(policy=TIERS).name == "box"
    assert choose_cloud("far", TIERS).url == "https://far/v1"
    made_up = choose_cloud("https://x/v1", model="m", key_env="KEY", price=Price(1, 2))
    assert made_up == Tier("cloud", "third-party", "https://x/v1", "m", key_env="KEY", price=Price(1, 2))
    assert choose_cloud(str(answers), TIERS) == answers


@pytest.mark.parametrize(
    ("given", "options", "words"),
    [
        ("", {}, "no file of answers to compare with"),
        ("", {"policy": Policy("empty")}, "no file of answers to compare with"),
        ("https://x/v1", {}, "no model is named"),
        ("far", {"policy": TIERS, "model": "m"}, "`model` is given, and the tier 'far'"),
        ("box", {"policy": TIERS, "price": Price(1, 2)}, "a price is given"),
        ("fra", {"policy": TIERS}, "no such file and no such tier"),
        ("absent.jsonl", {}, "absent.jsonl: no such file"),
        ("absent.jsonl", {"key_env": "KEY"}, "`key_env` is given, and `cloud` is not a URL: absent.jsonl"),
    ],
)
def test_what_does_not_go_together(given, options, words):
    with pytest.raises(ConfigError, match=words):
        choose_cloud(given, **options)


# --- the command --------------------------------------------------------------------------------


def command(world, *more) -> list[str]:
    bundle, data, _, store = world
    return ["route", "bench", str(bundle.path), "--data", str(data), "--store", str(store), *map(str, more)]


def test_the_command_shows_writes_and_draws(world, answers, tmp_path, capsys):
    out, plot = tmp_path / "deep" / "bench.json", tmp_path / "plots" / "bench.svg"
    assert run(command(world, "--cloud", answers, "--out", out, "--plot", plot)) == 0
    shown = capsys.readouterr().out
    for words in (
        "APGR",
        "CPT 50",
        "cost at 95 %",
        "calibrated router",
        "oracle",
        "served wrong",
        "no meter",
        "random",
    ):
        assert words in shown
    lines = shown.splitlines()
    random = next(line for line in lines if line.startswith("random"))
    assert random.split()[1] == "0.500"
    assert sum(line.startswith("calibrated router") for line in lines) == 2
    written = from_json(RouteBench, out.read_text())
    assert written.n == N
    svg = plot.read_text()
    assert "calibrated router" in svg
    assert "share of questions sent to the cloud" in svg
    assert str(tmp_path) not in svg


def test_the_command_speaks_json_and_asks_an_address(world, capsys, tmp_path):
    with serve_fake_openai("none") as server:
        prices = ("--price-in", "1", "--price-out", "4")
        plot = tmp_path / "x.png"
        assert run(command(world, "--cloud", server.url, "--model", "m", *prices, "--plot", plot, "--json")) == 0
        assert len(server.bodies) == N
    found = from_json(RouteBench, capsys.readouterr().out)
    assert found.price == "the endpoint's price"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_a_policys_tier_and_its_privacy(world, tmp_path, capsys):
    with serve_fake_openai("none") as server:
        policy = tmp_path / "policy.toml"
        policy.write_text(
            f'[[tier]]\nname = "box"\ntrust = "private"\nurl = "{server.url}"\nmodel = "m"\n'
            '[[privacy.rule]]\nname = "own"\nmatch = "secret"\nceiling = "device"\n'
        )
        assert run(command(world, "--policy", policy, "--cloud", "box")) == 0
        assert len(server.bodies) == N - N // 5
    assert "8 questions must not leave the device" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cloud", "https://x/v1"], "pass --model"),
        (["--cloud", "https://x/v1", "--model", "m", "--price-in", "1"], "--price-in needs --price-out"),
        (["--cloud", "https://x/v1", "--model", "m", "--key-env", "NO_SUCH_KEY"], "NO_SUCH_KEY is not set"),
        (["--cloud", "https://x/v1", "--model", "m", "--plot", "x.pdf"], ".svg or .png"),
        ([], "no file of answers to compare with"),
    ],
)
def test_the_command_refuses(world, options, said, capsys):
    assert run(command(world, *options)) == 1
    captured = capsys.readouterr()
    assert said in captured.err
    assert "hint:" in captured.err


def test_a_bundle_without_calibration_says_how_to_make_one(bundle, world, answers, capsys):
    manifest = bundle.path / "edgekit.json"
    bare = json.loads(manifest.read_text())
    bare["calibration"] = None
    manifest.write_text(json.dumps(bare))
    assert run(["route", "bench", str(bundle.path), "--data", str(world[1]), "--cloud", str(answers)]) == 1
    err = capsys.readouterr().err
    assert "no calibration" in err
    assert f"edgekit route calibrate {bundle.path} --data FILE" in err
