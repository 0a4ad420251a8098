"""Endpoints that are closed after the test, and waits that take no time."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from edgekit.routing.endpoints import Endpoint
from tests.cloud.loopback import KEY, tier


@dataclass
class Clock:
    """A clock that only sleeping moves."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def endpoint():
    """Make an endpoint of a tier; keywords that are no field of Tier go to Endpoint."""
    made = []

    def make(url: str, *, options: dict | None = None, **fields: object) -> Endpoint:
        one = Endpoint(tier(url, **fields), **{"environment": {"FAR_KEY": KEY}, **(options or {})})
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()
