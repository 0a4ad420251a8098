"""Money spent on endpoints today: what is asked for is set aside first, so that requests at once stay in the budget."""

from __future__ import annotations

from datetime import date
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Ledger:
    """One day's spending, of one policy. A day begins at this machine's midnight. Thread-safe."""

    def __init__(self, *, per_day: float | None, spent: float = 0.0, today: Callable[[], date] = date.today) -> None:
        """Args: the day's limit, None for none; what was spent today already; what day it is."""
        self._per_day = per_day
        self._today = today
        self._day = today()
        self._spent = spent
        self._held = 0.0
        self._lock = Lock()

    @property
    def committed(self) -> float:
        """Spent today, and set aside for what is under way."""
        with self._lock:
            self._turn()
            return self._spent + self._held

    @property
    def spent(self) -> float:
        """Spent today."""
        with self._lock:
            self._turn()
            return self._spent

    def hold(self, amount: float) -> bool:
        """Set money aside; False where the day's limit does not allow it."""
        with self._lock:
            self._turn()
            if self._per_day is not None and self._spent + self._held + amount > self._per_day:
                return False
            self._held += amount
            return True

    def settle(self, held: float, cost: float) -> None:
        """Give back what was set aside, and write down what it cost."""
        with self._lock:
            self._turn()
            # Not below nothing: sums of floats do not come out even.
            self._held = max(0.0, self._held - held)
            self._spent += cost

    def _turn(self) -> None:
        day = self._today()
        if day != self._day:
            self._day, self._spent = day, 0.0
