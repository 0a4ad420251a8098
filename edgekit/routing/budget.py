"""Money spent on endpoints today. Each request reserves its cost first, so that concurrent ones stay in the budget."""

from __future__ import annotations

from datetime import date
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Ledger:
    """One policy's spending on the current day, which begins at local midnight. Thread-safe."""

    def __init__(self, *, per_day: float | None, spent: float = 0.0, today: Callable[[], date] = date.today) -> None:
        """Args: the day's limit, None for no limit; the amount already spent today; the clock."""
        self._per_day = per_day
        self._today = today
        self._day = today()
        self._spent = spent
        self._held = 0.0
        self._lock = Lock()

    @property
    def committed(self) -> float:
        """Money spent today plus what is reserved for requests in progress."""
        with self._lock:
            self._turn()
            return self._spent + self._held

    @property
    def spent(self) -> float:
        """Money spent today."""
        with self._lock:
            self._turn()
            return self._spent

    def hold(self, amount: float) -> bool:
        """Reserve money. Returns False if the day's limit does not allow it."""
        with self._lock:
            self._turn()
            if self._per_day is not None and self._spent + self._held + amount > self._per_day:
                return False
            self._held += amount
            return True

    def settle(self, held: float, cost: float) -> None:
        """Release a reservation and record the actual cost."""
        with self._lock:
            self._turn()
            # Floating-point sums may end slightly below 0.
            self._held = max(0.0, self._held - held)
            self._spent += cost

    def _turn(self) -> None:
        day = self._today()
        if day != self._day:
            self._day, self._spent = day, 0.0
