"""Requests, policies and states for the tests of the decision: plain ones, and random ones from a seed."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from edgekit.types import Energy, Measurement, Sampling
from edgekit.types.calibration import Calibration, Guarantee, PrefixScore, Score, Signals
from edgekit.types.routing import (
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
    Unfit,
    Unknown,
)
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
REQUEST = Request(
    (Message("user", "What is the capital of France?"),), sampling=Sampling(max_new_tokens=256), tokens=COUNTS,
    counted=frozenset({"device"}),
)  # fmt: skip
OPEN = replace(REQUEST, sampling=Sampling())
"""The same without a limit to its answer."""

SIGNALS = Signals(20, -0.3, -2.0, -1.5, -0.5, -3.0, 0.7, 0.6, 0.4, -0.1, 0.8)
SCORE = Score(("mean_logprob",), (-1.0,), 0.0, "isotonic", ((0.0, 0.0), (0.5, 0.2), (1.0, 0.8)))


def calibration(**changes: Any) -> Calibration:
    return replace(
        Calibration(
            "ab" * 32,
            "P",
            (),
            "cd" * 32,
            "t",
            "d.jsonl",
            "ef" * 32,
            100,
            100,
            60,
            SCORE,
            0.25,
            None,
            None,
            (),
            None,
            0.0,
            0.0,
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


def often(random: Random, usual: Any, *others: Any) -> Any:
    """Mostly the usual, so that not every case is refused for one of its many numbers."""
    return usual if random.random() < 0.8 else random.choice(others)


def random_request(random: Random, policy: Policy) -> Request:
    words = ["secret", "hello", "hello", "hello", "invoice", "x" * 5000, "\n", "\0", "a@b.c"]
    names = ["device", *(t.name for t in policy.tiers)]
    return Request(
        messages=tuple(Message("user", random.choice(words)) for _ in range(random.randrange(3))),
        prompt=random.choice(words),
        sampling=Sampling(max_new_tokens=often(random, 50, None, 1, 256, 5000, 10**9)),
        tokens=tuple((name, often(random, 10, 0, 50, 3000, 200_000)) for name in names if random.random() < 0.97),
        counted=frozenset(n for n in names if random.random() < 0.5),
        needs=frozenset(a for a in ("tools", "images", "json-schema") if random.random() < 0.05),  # type: ignore[misc]
        schema=random.choice([*[""] * 8, "{}", "not json"]),
        language=often(random, "en", None, "fi"),
        override=random.choice([*[None] * 5, "local-only", "cloud-ok", "cloud-ok"]),  # type: ignore[arg-type]
        private=random.choice([*[""] * 7, "diary.txt is private"]),
        passthrough=random.choice(["", "", "", '{"tools": [{"name": "secret"}]}', "{", '["data:secret"]']),
        unfit=random.choice([*[None] * 30, Unfit("template", "refused"), Unfit("empty", "nothing")]),
    )


def random_policy(random: Random) -> Policy:
    def maybe(*values: Any) -> Any:
        return random.choice([None, *values])

    tiers = tuple(
        Tier(
            f"t{i}",
            random.choice(["private", "private", "third-party", "device"]),  # type: ignore[arg-type]
            "https://t", "m",
            context=often(random, 10**6, None, 20, 4096),
            max_output=often(random, None, 20, 10**6),
            price=often(random, Price(0, 0), None, Price(1, 4), Price(1e9, 1e9)),
            can=frozenset(a for a in ("tools", "images", "json-schema") if random.random() < 0.9),  # type: ignore[misc]
            languages=often(random, frozenset(), frozenset({"en"})),
            seconds_to_first=often(random, 0.1, None, 100.0),
            tokens_per_second=often(random, 100.0, None, 1.0),
        )
        for i in range(random.randrange(7))
    )  # fmt: skip
    rules = (
        PrivacyRule("s", "secret", "device"),
        PrivacyRule("i", "invoice", "private"),
        PrivacyRule("bad", "(", "device"),
    )
    falls = [often(random, "local", "cloud") for _ in range(6)]
    ceiling: Any = random.choice(["device", "private", "third-party", "third-party"])
    can: Any = random.choice([frozenset(), frozenset({"json-schema"})])
    resort: Any = random.choice(["answer", "refuse"])
    return Policy(
        "random",
        tiers,
        Privacy(ceiling, tuple(r for r in rules if random.random() < 0.15)),
        OnDevice(can, often(random, frozenset(), frozenset({"en"})), often(random, None, 100)),
        Bounds(
            often(random, 10.0, None, 0.2),
            often(random, 100.0, None, 1.0),
            maybe(20.0),
            maybe(80.0),
            random.choice([0, 1 << 30]),
        ),
        Budget(often(random, None, 0.01, 10.0), often(random, None, 0.1, 100.0)),
        Unknown(*falls),  # type: ignore[arg-type]
        AnswerRules(maybe(0.0, 0.3, 1.0), random.random() < 0.5, random.random() < 0.5, random.random() < 0.5),
        last_resort=resort,
    )


def random_state(random: Random, policy: Policy) -> DeviceState:
    nan, inf = float("nan"), float("inf")
    return DeviceState(
        context=often(random, 8192, 1, 2048),
        free_memory=often(random, 8 << 30, None, 1 << 20),
        memory_needed=random.choice([None, 0, 1 << 28]),
        battery_percent=often(random, 90.0, None, 0.0, 10.0, nan),
        on_battery=random.choice([None, True, False]),
        celsius=often(random, 40.0, None, 99.0, nan),
        waiting=often(random, 0.0, 3.0, inf),
        spent_today=often(random, 0.0, 5.0, inf),
        unreachable=tuple((t.name, "timed out") for t in policy.tiers if random.random() < 0.2),
    )
