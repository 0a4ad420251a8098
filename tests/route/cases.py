"""Requests, policies and states for the tests of the decision: plain ones, and random ones from a seed."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from edgekit.calibration import Calibration, Guarantee, PrefixScore, Score, Signals
from edgekit.routing import (
    AnswerRules,
    Bounds,
    Budget,
    DeviceState,
    Message,
    OnDevice,
    Policy,
    Price,
    Privacy,
    PrivacyRule,
    Request,
    Tier,
    Unknown,
)
from edgekit.types import Energy, Measurement, Sampling
from tests import made

BOX = Tier("box", "private", "http://box/v1", "m", context=32768, price=Price(0, 0), can=frozenset({"json-schema"}))
CLOUD = Tier(
    "cloud", "third-party", "https://c/v1", "m", context=128000, price=Price(1, 4),
    can=frozenset({"tools", "images", "json-schema"}), seconds_to_first=0.5, tokens_per_second=100,
)  # fmt: skip
PREMIUM = replace(CLOUD, name="premium", price=Price(5, 20))
POLICY = Policy("p", (BOX, CLOUD, PREMIUM))
STATE = DeviceState(context=2048, free_memory=8 << 30, memory_needed=1 << 28)
COUNTS = (("device", 100), ("box", 130), ("cloud", 130), ("premium", 130))
REQUEST = Request((Message("user", "What is the capital of France?"),), tokens=COUNTS, counted=frozenset({"device"}))

SIGNALS = Signals(20, -0.3, -2.0, -1.5, -0.5, -3.0, 0.7, 0.6, 0.4, -0.1, 0.8)
SCORE = Score(("mean_logprob",), (-1.0,), 0.0, "isotonic", ((0.0, 0.0), (0.5, 0.2), (1.0, 0.8)))


def calibration(**changes: Any) -> Calibration:
    return replace(
        Calibration(
            "ab", "P", (), "cd", "t", "d.jsonl", "ef", 100, 100, 60, SCORE, 0.25, None, None, (), None, 0.0, 0.0
        ),
        **changes,
    )


GUARANTEE = Guarantee(0.05, 0.05, 300, 200, 3, 0.04, 0.67)
PREFIX = PrefixScore(16, SCORE, 0.5, 0.6, 0.02)


def measured(speed: float = 50.0, energy: Energy | None = None) -> Measurement:
    """50 tokens a second at depth 0, 43 at 512, 30 at 2048; prompts at 350."""
    from edgekit.types import Series

    plain = made.measurement(speed, "int4", energy)
    rates = {"pp512": 7.0, "tg128@0": 1.0, "tg128@512": 0.86, "tg128@2048": 0.6}
    return replace(plain, series=tuple(Series(name, "tok/s", (speed * r,)) for name, r in rates.items()))


def random_request(random: Random, policy: Policy) -> Request:
    words = ["secret", "hello", "invoice", "x" * 5000, "\n", "\0", "a@b.c"]
    names = ["device", *(t.name for t in policy.tiers)]
    return Request(
        messages=tuple(Message("user", random.choice(words)) for _ in range(random.randrange(3))),
        prompt=random.choice(words),
        sampling=Sampling(max_new_tokens=random.choice([1, 256, 5000, 10**9])),
        tokens=tuple((name, random.choice([0, 10, 3000, 200_000])) for name in names if random.random() < 0.9),
        counted=frozenset(n for n in names if random.random() < 0.5),
        needs=frozenset(a for a in ("tools", "images", "json-schema") if random.random() < 0.2),  # type: ignore[misc]
        schema=random.choice(["", "", "{}", "not json"]),
        language=random.choice([None, "en", "fi"]),
        override=random.choice([None, None, "local-only", "cloud-ok"]),  # type: ignore[arg-type]
        private=random.choice(["", "", "diary.txt is private"]),
        passthrough=random.choice(["", '{"tools": [{"name": "secret"}]}', "{", '["data:secret"]']),
    )


def random_policy(random: Random) -> Policy:
    def maybe(*values: Any) -> Any:
        return random.choice([None, *values])

    tiers = tuple(
        Tier(
            f"t{i}",
            random.choice(["private", "third-party", "device"]),  # type: ignore[arg-type]
            "https://t", "m",
            context=maybe(100, 4096, 10**6),
            max_output=maybe(100, 10**6),
            price=maybe(Price(0, 0), Price(1, 4), Price(1e9, 1e9)),
            can=frozenset(a for a in ("tools", "images", "json-schema") if random.random() < 0.6),  # type: ignore[misc]
            languages=random.choice([frozenset(), frozenset({"en"})]),
            seconds_to_first=maybe(0.1, 100.0),
            tokens_per_second=maybe(1.0, 100.0),
        )
        for i in range(random.randrange(5))
    )  # fmt: skip
    rules = [
        PrivacyRule("s", "secret", "device"),
        PrivacyRule("i", "invoice", "private"),
        PrivacyRule("bad", "(", "device"),
    ]
    falls = [random.choice(["local", "cloud"]) for _ in range(6)]
    return Policy(
        "random",
        tiers,
        Privacy(random.choice(["device", "private", "third-party"]), tuple(r for r in rules if random.random() < 0.3)),  # type: ignore[arg-type]
        OnDevice(random.choice([frozenset(), frozenset({"json-schema"})]), random.choice([frozenset(), frozenset({"en"})]), maybe(100)),
        Bounds(maybe(0.1, 10.0), maybe(1.0, 100.0), maybe(20.0), maybe(80.0), random.choice([0, 1 << 30])),
        Budget(maybe(0.01, 10.0), maybe(0.1, 100.0)),
        Unknown(*falls),  # type: ignore[arg-type]
        AnswerRules(maybe(0.0, 0.3, 1.0), random.random() < 0.5, random.random() < 0.5, random.random() < 0.5),
        last_resort=random.choice(["answer", "refuse"]),  # type: ignore[arg-type]
    )  # fmt: skip


def random_state(random: Random, policy: Policy) -> DeviceState:
    nan, inf = float("nan"), float("inf")
    return DeviceState(
        context=random.choice([1, 2048, 8192]),
        free_memory=random.choice([None, 1 << 20, 8 << 30]),
        memory_needed=random.choice([None, 0, 1 << 28]),
        battery_percent=random.choice([None, 0.0, 10.0, 90.0, nan]),
        on_battery=random.choice([None, True, False]),
        celsius=random.choice([None, 40.0, 99.0, nan]),
        waiting=random.choice([0.0, 3.0, inf]),
        spent_today=random.choice([0.0, 5.0, inf]),
        unreachable=tuple((t.name, "timed out") for t in policy.tiers if random.random() < 0.2),
    )
