"""Joules of a trace: against integrals done by hand, against known loads, and what is no trace."""

from __future__ import annotations

import random

import pytest

from benchmarks.energy import replay
from edgekit.errors import MeasureError
from edgekit.measure.trace import check_trace, joules, period, watts
from edgekit.types.power import Trace


def sampled(values, step=1.0, **facts):
    return Trace("m", "W", tuple(i * step for i in range(len(values))), tuple(map(float, values)), **facts)


def counted(values, step=1.0, **facts):
    return Trace("m", "J", tuple(i * step for i in range(len(values))), tuple(map(float, values)), **facts)


def test_a_straight_line_is_integrated_exactly():
    trace = sampled([3 * t / 10 + 1 for t in range(21)], 0.1)  # w = 3 t + 1 over 0..2 s
    assert joules(trace).value == pytest.approx(3 * 2**2 / 2 + 2)
    # From 0.55 to 1.25: 3/2 (1.25^2 - 0.55^2) + 0.7
    assert joules(trace, 0.55, 1.25).value == pytest.approx(1.5 * (1.25**2 - 0.55**2) + 0.7)


def test_constant_power_has_no_error_but_its_rounding():
    assert joules(sampled([5] * 11)) == joules(sampled([5] * 11), 0.0, 10.0)
    assert joules(sampled([5] * 11)).error == 0
    assert joules(sampled([5] * 11, resolution=0.2)).error == pytest.approx(10 * 0.1)
    assert joules(sampled([5] * 11, lag=1.0)).error == 0


def test_a_step_may_be_anywhere_between_its_readings_and_their_neighbours():
    found = joules(sampled([1, 1, 1, 1, 3, 3, 3, 3]))
    assert found.value == pytest.approx(3 * 1 + 2 + 3 * 3)
    assert found.error == pytest.approx(2 + 1 + 2)  # the piece of the step, and one on each side


def test_a_lag_moves_a_step_by_as_much():
    """Summation by parts: means ... 1 1 1.5 2 2 ..., half ranges ... 0 1 0.5 1 0 ...."""
    plain = joules(sampled([1] * 9 + [2] * 9))
    late = joules(sampled([1] * 9 + [2] * 9, lag=0.1))
    assert late.error - plain.error == pytest.approx(0.1 * (1 + 3))


def test_the_error_is_never_more_than_what_the_extremes_allow():
    found = joules(sampled([1, 3, 1, 3, 1, 3], lag=100.0))
    assert found.error == pytest.approx(5.0)  # 5 s between 1 and 3 W


def test_a_gap_may_hold_whatever_the_meter_has_shown():
    trace = Trace("m", "W", (0.0, 1.0, 2.0, 3.0, 4.0, 14.0, 15.0, 16.0), (2.0, 2.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0))
    alone = joules(trace, 4.0, 14.0)
    assert alone.value == pytest.approx(20)
    assert alone.error == pytest.approx(7 * 10)
    assert joules(trace, 14.0, 16.0).error == 0


def test_counted_joules_are_exact_at_readings_whatever_happens_between():
    trace = counted([0, 1, 9, 9, 30])
    assert joules(trace, 1.0, 4.0).value == 29
    assert joules(trace, 1.0, 4.0).error == 0
    half = joules(trace, 1.5, 4.0)
    assert half.value == pytest.approx(25)
    assert half.error == pytest.approx(4)  # 1 to 9 J at 1.5 s
    coarse = joules(counted([0, 1, 9, 9, 30], resolution=0.5), 1.0, 4.0)
    assert (coarse.value, coarse.error) == (29, pytest.approx(1.0))


def test_a_counter_s_lag_counts_at_both_ends():
    found = joules(counted(range(0, 110, 10), lag=0.5), 2.0, 8.0)
    assert found.value == pytest.approx(60)
    # At 2 s the counter may have been at 20 to 30 J, which is what it says half a second later at the latest.
    assert found.error == pytest.approx(20)


def test_marks_that_may_be_off_cost_the_power_around_them():
    plain, off = joules(sampled([5] * 101, 0.1), 2.0, 8.0), joules(sampled([5] * 101, 0.1), 2.0, 8.0, shift=0.02)
    assert off.error - plain.error == pytest.approx(2 * 0.02 * 5)


def test_counted_joules_as_power():
    assert watts(counted([0, 1, 9])) == [(0.5, 1), (1.5, 8)]
    assert watts(sampled([2, 3])) == [(0, 2), (1, 3)]
    assert period(Trace("m", "W", (0.0, 1.0, 2.0, 9.0), (1.0,) * 4)) == 1


@pytest.mark.parametrize(("begin", "end"), [(-3.0, 5.0), (5.0, 13.0), (6.0, 5.0), (5.0, 5.0)])
def test_a_trace_that_does_not_cover_the_work_is_refused(begin, end):
    with pytest.raises(MeasureError, match=r"was read from 0.000 s to 10.000 s") as caught:
        joules(sampled([5] * 11), begin, end)
    assert "before the work" in caught.value.hint


@pytest.mark.parametrize("unit", ["W", "J"])
def test_a_mark_a_moment_outside_is_covered(unit):
    trace = sampled([5] * 11) if unit == "W" else counted(range(0, 55, 5))
    found = joules(trace, -1.0, 11.0)
    assert abs(found.value - 60) <= found.error + 1e-9


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (sampled([1]), "1 readings"),
        (sampled([1, float("nan"), 1]), "reads nan W"),
        (sampled([1, float("inf")]), "reads inf W"),
        (sampled([1, -0.5, 1]), "less than zero: -0.5"),
        (sampled([-1, 1]), "less than zero"),
        (sampled([1, 1e9, 1]), "jumps to 1e[+]09 W"),
        (sampled([1e9, 1]), "jumps to 1e[+]09 W"),
        (counted([0, 1, 1e9]), "jumps"),
        (counted([0, 2, 1]), "less than zero"),
        (Trace("m", "W", (0.0, 2.0, 1.0), (1.0, 1.0, 1.0)), "its time goes from 2.000000 s back to 1"),
        (Trace("m", "W", (0.0, 1.0, 1.0), (1.0, 1.0, 1.0)), "its time goes"),
        (Trace("m", "W", (0.0, float("nan"), 1.0), (1.0, 1.0, 1.0)), "at nan s"),
    ],
)
def test_nonsense_is_refused_with_a_fix(trace, message):
    with pytest.raises(MeasureError, match=message) as caught:
        check_trace(trace)
    assert caught.value.hint


def test_replayed_traces_of_known_joules_are_inside_their_bound():
    rng = random.Random(7)
    for _ in range(25):
        run = replay(rng, hertz=10 ** rng.uniform(1, 2.3))
        assert run.inside, run
        assert run.bound < run.true / 2
    assert all(replay(rng, "watts", 100.0, 0).bound <= 0.02 * replay(rng, "watts", 100.0, 0).true for _ in range(3))
