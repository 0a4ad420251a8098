"""The day's money: set aside before it is spent, so that requests at once cannot overspend."""

from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pytest

from edgekit.routing.budget import Ledger


def test_what_is_set_aside_counts_until_it_is_settled():
    ledger = Ledger(per_day=1.0, spent=0.5)
    assert ledger.hold(0.4)
    assert ledger.committed == pytest.approx(0.9)
    assert not ledger.hold(0.2)
    ledger.settle(0.4, 0.1)
    assert ledger.spent == ledger.committed == pytest.approx(0.6)
    assert ledger.hold(0.2)


def test_without_a_limit_all_is_allowed_and_counted():
    ledger = Ledger(per_day=None)
    assert ledger.hold(1e6)
    ledger.settle(1e6, 3.0)
    assert ledger.spent == 3.0


def test_a_new_day_begins_with_nothing_spent_but_what_is_under_way():
    days = [date(2026, 1, 1)]
    ledger = Ledger(per_day=1.0, spent=0.9, today=lambda: days[0])
    assert ledger.hold(0.1)
    days[0] = date(2026, 1, 2)
    assert ledger.committed == pytest.approx(0.1)
    ledger.settle(0.1, 0.1)
    assert ledger.spent == pytest.approx(0.1)


def test_requests_at_once_never_go_over():
    ledger = Ledger(per_day=10.0)
    with ThreadPoolExecutor(16) as pool:
        held = list(pool.map(lambda _: ledger.hold(1.0), range(64)))
    assert sum(held) == 10
