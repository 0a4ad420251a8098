"""When to leave an endpoint alone: the circuit breaker, and the budget that retries are paid from."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from edgekit.words import seconds

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES = 5
PAUSE = 30.0
REFUSED_PAUSE = 300.0
LONGEST_PAUSE = 3600.0


class Breaker:
    """Closed, open for a pause, or half open: one request tries, and the others wait for its outcome. Thread-safe.

    Args:
        clock: seconds, never going back.
        failures: consecutive ones that open it.
        pause: seconds it stays open; twice as long each time the trial fails, up to ten times.
        refused_pause: seconds after the account, the key or the address was refused: time alone does not cure that.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        failures: int = FAILURES,
        pause: float = PAUSE,
        refused_pause: float = REFUSED_PAUSE,
    ) -> None:
        self._clock = clock
        self._failures = failures
        self._pause = pause
        self._refused_pause = refused_pause
        self._lock = Lock()
        self._reset()

    def _reset(self) -> None:
        self._row = 0
        self._opened = 0
        self._until: float | None = None
        self._reason = ""
        self._trying = False
        self.refused = False

    def down(self) -> str:
        """Why nothing should be sent now, in words; "" when something may."""
        with self._lock:
            return self._down()

    def _down(self) -> str:
        if self._until is None:
            return ""
        left = self._until - self._clock()
        if left > 0:
            return f"{self._reason}; tried again in {seconds(left)}"
        return f"{self._reason}; being tried again" if self._trying else ""

    def enter(self) -> tuple[str, bool]:
        """Ask to send. Returns why not ("" for yes), and whether this request is the trial after a pause."""
        with self._lock:
            reason = self._down()
            if reason or self._until is None:
                return reason, False
            self._trying = True
            return "", True

    def succeed(self) -> None:
        """The endpoint answered: all is forgotten."""
        with self._lock:
            self._reset()

    def fail(self, reason: str, trial: bool) -> None:
        """It did not. Opens after enough in a row, and at once where this was the trial."""
        with self._lock:
            if self._until is not None and not trial:
                return  # sent before it opened
            self._row += 1
            if trial or self._row >= self._failures:
                self._opened += 1
                self._open(reason, self._pause * min(10, 2 ** (self._opened - 1)))

    def refuse(self, reason: str) -> None:
        """It will have none of us until something is changed: the key, the account, the model."""
        with self._lock:
            self._open(reason, self._refused_pause)
            self.refused = True

    def hold(self, reason: str, wait: float) -> None:
        """It asked us to wait."""
        with self._lock:
            self._open(reason, min(wait, LONGEST_PAUSE))

    def _open(self, reason: str, pause: float) -> None:
        until = self._clock() + pause
        if self._until is None or until > self._until:  # requests in flight end late: none of them shortens a pause
            self._until, self._reason = until, reason
        self._trying = False

    def leave(self, trial: bool) -> None:
        """A request ended without telling anything, as when it was cancelled; another may be the trial."""
        with self._lock:
            if trial:
                self._trying = False


class RetryBudget:
    """Retries as a share of requests: a token bucket, as in gRPC's and Finagle's retry throttling. Thread-safe.

    Args:
        share: retries that each request pays for.
        most: that can be saved up; an endpoint starts with a fifth of it.
    """

    def __init__(self, share: float = 0.2, most: float = 10.0) -> None:
        self._share = share
        self._most = most
        self._saved = most / 5
        self._lock = Lock()

    def deposit(self) -> None:
        """A request was made."""
        with self._lock:
            self._saved = min(self._most, self._saved + self._share)

    def withdraw(self) -> bool:
        """Pay for one retry; False where nothing is left."""
        with self._lock:
            if self._saved < 1 - 1e-9:  # five fifths are one
                return False
            self._saved -= 1
            return True
