"""The router's interface for the server, so that tests can replace ``edgekit.routing.router``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from edgekit.routing.decision.drift import Drift
    from edgekit.types import Bundle
    from edgekit.types.routing import Event, Policy, Request, Verdict


class Status(Protocol):
    """The router's current status."""

    @property
    def waiting(self) -> int:
        """Number of requests that wait for the model."""

    @property
    def spent_today(self) -> float:
        """Money spent today, in the policy's currency."""

    @property
    def down(self) -> tuple[tuple[str, str], ...]:
        """Tiers that cannot be asked at the moment, each with the reason."""

    @property
    def drift(self) -> Drift | None:
        """Comparison of live scores with the calibration's; None without a calibration."""

    @property
    def meter(self) -> str:
        """Name of the energy meter, "" for none."""

    @property
    def documents(self) -> str:
        """A sentence about the user's documents, "" without any."""


class Answerer(Protocol):
    """Answers requests by a policy. Thread-safe."""

    @property
    def policy(self) -> Policy:
        """The policy."""

    @property
    def bundle(self) -> Bundle:
        """The local model."""

    def prepare(self, request: Request) -> Request:
        """Prepare a request for the decision. Does nothing twice."""

    def answer(self, request: Request, *, stop: threading.Event | None = None) -> Iterator[Event]:
        """Yield one Opening, Pieces and one Routed, or only a Routed if nobody answers. Blocking."""

    def explain(self, request: Request) -> Verdict:
        """Decide without sending anything."""

    def status(self) -> Status:
        """Return the current status."""

    def close(self) -> None:
        """Release the model."""
