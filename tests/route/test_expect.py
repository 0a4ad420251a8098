"""What an answer is expected to take, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.routing.decision.latency_model import expect_local, expect_tier
from edgekit.types import Energy, Series
from edgekit.types.routing import Expected, Price
from tests.route.cases import BOX, CLOUD, measured

METERED = Energy("measured", "RAPL", gross_joules=80.0, net_joules=60.0, seconds=10.0, tokens=500)


def series(*rates: tuple[str, float]):
    return replace(measured(), series=tuple(Series(name, "tok/s", (rate,)) for name, rate in rates))


def test_nothing_is_known_without_a_measurement() -> None:
    assert expect_local(None, 100, 10) == Expected(cost=0.0)
    assert expect_local(measured(), None, 10) == Expected(cost=0.0)
    assert expect_local(series(("tg128@0", 50)), 100, 10) == Expected(cost=0.0)
    assert expect_local(series(("pp512", 50)), 100, 10) == Expected(cost=0.0)
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        assert expect_local(series(("pp512", speed), ("tg128@0", 50.0)), 100, 10) == Expected(cost=0.0)
        assert expect_local(series(("pp512", 50.0), ("tg128@0", speed)), 100, 10) == Expected(cost=0.0)
    broken = replace(measured(), series=(Series("pp512", "tok/s", ()), Series("tgx@y", "tok/s", (1.0,))))
    assert expect_local(broken, 100, 10) == Expected(cost=0.0)


def test_prompt_tokens_and_waiting() -> None:
    flat = series(("pp512", 400.0), ("tg128@0", 50.0))
    expected = expect_local(flat, 400, 51, waiting=2.0)
    assert expected.seconds_to_first == pytest.approx(3.0)
    assert expected.seconds == pytest.approx(3.0 + 50 / 50)
    assert (expected.joules, expected.energy, expected.cost) == (None, "none", 0.0)
    # A prompt of one token still takes a step.
    assert expect_local(flat, 1, 1).seconds == pytest.approx(1 / 50)


def test_between_the_depths_that_were_measured_and_beyond() -> None:
    # Seconds a token: 0.02 around depth 64, 0.04 around 1064.
    slope = series(("pp512", 1e6), ("tg128@0", 50.0), ("tg128@1000", 25.0))
    step = {depth: expect_local(slope, depth, 2) for depth in (0, 64, 563, 1063, 2063)}
    seconds = {depth: x.seconds - x.seconds_to_first for depth, x in step.items()}  # type: ignore[operator]
    assert seconds[0] == pytest.approx(0.02)
    assert seconds[563] == pytest.approx(0.03)
    assert seconds[1063] == pytest.approx(0.04)
    assert seconds[2063] == pytest.approx(0.06)
    # A slope that falls is noise, and not gone on with.
    falling = series(("pp512", 1e6), ("tg128@0", 25.0), ("tg128@1000", 50.0))
    assert expect_local(falling, 9000, 2).seconds == pytest.approx(9000 / 1e6 + 2 * 0.02, rel=0.2)


def test_prompts_between_the_lengths_that_were_measured() -> None:
    two = series(("pp100", 100.0), ("pp300", 50.0), ("tg128@0", 1e6))
    assert expect_local(two, 200, 1).seconds_to_first == pytest.approx(200 * 0.015)
    assert expect_local(two, 50, 1).seconds_to_first == pytest.approx(50 * 0.01)
    assert expect_local(two, 900, 1).seconds_to_first == pytest.approx(900 * 0.02)


def test_joules_are_power_times_work_and_say_where_they_come_from() -> None:
    flat = replace(series(("pp512", 400.0), ("tg128@0", 50.0)), energy=METERED)
    expected = expect_local(flat, 400, 51, waiting=100.0)
    assert expected.joules == pytest.approx(8.0 * 2.0)
    assert expected.energy == "measured"
    estimated = expect_local(replace(flat, energy=replace(METERED, kind="estimated")), 400, 51)
    assert (estimated.energy, estimated.joules) == ("estimated", pytest.approx(16.0))
    assert expect_local(replace(flat, energy=replace(METERED, kind="none")), 400, 51).joules is None


def test_a_tier_as_the_user_expects_it() -> None:
    assert expect_tier(CLOUD, 1000, 101) == Expected(0.5, 1.5, None, pytest.approx(0.001404))
    assert expect_tier(replace(BOX, price=None), 1000, 10) == Expected()
    assert expect_tier(replace(CLOUD, price=Price(1, 1, 0.5)), 0, 0).cost == 0.5
    assert expect_tier(CLOUD, None, 10).cost is None
