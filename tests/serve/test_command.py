"""`edgekit serve` as a process: what it prints, and what it refuses before a model is loaded."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from edgekit import build_bundle
from edgekit.errors import ConfigError
from edgekit.serve.assembly import NO_HISTORY, Plan, describe_policy, last_midnight, serve_bundle
from edgekit.serve.running import bind
from edgekit.testing import tiny_checkpoint
from tests.made import bundle as made_bundle
from tests.serve.doubles import POLICY, ScriptedRouter

POLICY_TEXT = 'name = "alone"\n'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    model = tiny_checkpoint(tmp_path_factory.mktemp("serve") / "tiny")
    return build_bundle(str(model), precision="int4", out=model.parent / "tiny-int4").path


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(POLICY_TEXT)
    return path


def start(bundle, policy, *more, **environment):
    command = [sys.executable, "-m", "edgekit", "serve", str(bundle), "--policy", str(policy), "--port", "0", "--json"]
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def read_document(process):
    lines = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        assert line, process.stderr.read()
        lines.append(line)
    return json.loads("".join(lines))


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_with_the_model_and_ends_well(bundle, policy, tmp_path, sign):
    process = start(bundle, policy, "--history", f"sqlite:///{tmp_path}/h.sqlite")
    try:
        told = read_document(process)
        assert told["bundle"] == str(bundle)
        assert told["policy"] == "alone"
        assert told["means"][0] == "Everything is answered on this device: the policy has no endpoint."
        body = {"model": "edgekit", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}
        request = urllib.request.Request(f"{told['url']}/v1/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.loads(answer.read())
        assert found["edgekit"]["tier"] == "device"
        assert 1 <= found["usage"]["completion_tokens"] <= 8
        process.send_signal(sign)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert out == ""
        assert "Traceback" not in err
    finally:
        process.kill()
        process.wait()


def test_a_policy_in_words():
    alone = describe_policy(POLICY, made_bundle())
    assert alone[0] == "Answers on this device if possible, else on edge (private), for at most 5 EUR a day."
    assert "no calibration" in alone[1]


def plan(tmp_path, policy, **more):
    return Plan(tmp_path / "nowhere", policy, port=0, history=NO_HISTORY, **more)


def test_other_machines_need_a_token(tmp_path, policy, monkeypatch):
    monkeypatch.delenv("EDGEKIT_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="there is no token") as caught:
        serve_bundle(plan(tmp_path, policy, host="0.0.0.0"), print)
    assert "`token_file`" in caught.value.hint


def test_the_port_is_looked_at_before_the_bundle(tmp_path, policy):
    with bind("127.0.0.1", 0) as taken:
        asked = Plan(tmp_path / "nowhere", policy, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="the port is in use"):
            serve_bundle(asked, print)


def test_prompts_cannot_be_stored_nowhere(bundle, policy):
    asked = Plan(bundle, policy, port=0, history=NO_HISTORY, store_prompts=True)
    with pytest.raises(ConfigError, match="`store_prompts` needs a history"):
        serve_bundle(asked, print)


def test_what_was_spent_today_is_handed_to_the_router(bundle, policy, tmp_path):
    from edgekit.serve.history import History
    from edgekit.types.routing import Request
    from tests.serve.doubles import LEFT, routed

    url = f"sqlite:///{tmp_path}/h.sqlite"
    before = History(url)
    before.add(Request(), routed(LEFT, cost=0.75))
    before.close()
    router, told = ScriptedRouter(), []

    def open_router(_plan, _bundle, _policy, spent):
        told.append(spent)
        raise ConfigError("enough", "stop")

    with pytest.raises(ConfigError, match="enough"):
        serve_bundle(Plan(bundle, policy, port=0, history=url), print, open_router)
    assert told == [0.75]
    assert not router.closed


def test_midnight():
    import time

    assert 0 <= time.time() - last_midnight() < 26 * 3600
    assert time.localtime(last_midnight())[3:6] == (0, 0, 0)
