"""The circuit breaker of an endpoint, and its budget of retries."""

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
    """A circuit breaker: closed, open for a pause, or half open with one request as a trial. Thread-safe.

    Args:
        clock: monotonic time in seconds.
        failures: consecutive failures that open it.
        pause: seconds it stays open; doubled each time the trial fails, up to ten times.
        refused_pause: seconds after the account, the key or the address was refused, which waiting does not fix.
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
        """Return why nothing should be sent now; "" if something may be."""
        with self._lock:
            return self._down()

    def _down(self) -> str:
        if self._until is None:
            return ""
        left = self._until - self._clock()
        if left > 0:
            return f"{self._reason}; next try in {seconds(left)}"
        return f"{self._reason}; a trial request is in progress" if self._trying else ""

    def enter(self) -> tuple[str, bool]:
        """Ask to send. Returns why not ("" if allowed), and whether this request is the trial after a pause."""
        with self._lock:
            reason = self._down()
            if reason or self._until is None:
                return reason, False
            self._trying = True
            return "", True

    def succeed(self) -> None:
        """Record an answer: closes the breaker."""
        with self._lock:
            self._reset()

    def fail(self, reason: str, trial: bool) -> None:
        """Record a failure: opens the breaker after enough in a row, or at once if this was the trial."""
        with self._lock:
            if self._until is not None and not trial:
                return  # sent before it opened
            self._row += 1
            if trial or self._row >= self._failures:
                self._opened += 1
                self._open(reason, self._pause * min(10, 2 ** (self._opened - 1)))

    def refuse(self, reason: str) -> None:
        """Record that the endpoint refuses us until the key, the account or the model is changed."""
        with self._lock:
            self._open(reason, self._refused_pause)
            self.refused = True

    def hold(self, reason: str, wait: float) -> None:
        """Record that the endpoint asked us to wait."""
        with self._lock:
            self._open(reason, min(wait, LONGEST_PAUSE))

    def _open(self, reason: str, pause: float) -> None:
        until = self._clock() + pause
        if self._until is None or until > self._until:  # a late result of an earlier request must not shorten a pause
            self._until, self._reason = until, reason
        self._trying = False

    def leave(self, trial: bool) -> None:
        """Record a request without a result, such as a cancelled one; another may be the trial."""
        with self._lock:
            if trial:
                self._trying = False


class RetryBudget:
    """Retries as a share of requests: a token bucket, as in gRPC's and Finagle's retry throttling. Thread-safe.

    Args:
        share: retries added per request.
        most: most retries that can be saved up; an endpoint starts with a fifth of it.
    """

    def __init__(self, share: float = 0.2, most: float = 10.0) -> None:
        self._share = share
        self._most = most
        self._saved = most / 5
        self._lock = Lock()

    def deposit(self) -> None:
        """Record a request."""
        with self._lock:
            self._saved = min(self._most, self._saved + self._share)

    def withdraw(self) -> bool:
        """Pay for one retry. Returns False if the budget is used up."""
        with self._lock:
            if self._saved < 1 - 1e-9:  # five times 0.2 is not exactly 1
                return False
            self._saved -= 1
            return True
