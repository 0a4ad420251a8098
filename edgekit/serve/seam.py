"""What the server needs of a router: the one in ``edgekit.routing.router``, or a double in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from edgekit.routing.decision.drift import Drift
    from edgekit.types import Bundle
    from edgekit.types.routing import Event, Policy, Request, Verdict


class Status(Protocol):
    """How things stand."""

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""

    @property
    def spent_today(self) -> float:
        """In the policy's currency."""

    @property
    def down(self) -> tuple[tuple[str, str], ...]:
        """Tiers that are not asked at the moment, and why."""

    @property
    def drift(self) -> Drift | None:
        """How live scores stand against the calibration's; None without one."""

    @property
    def meter(self) -> str:
        """What joules are read from, "" for nothing."""

    @property
    def documents(self) -> str:
        """What of the user's own documents answers draw on, in a sentence; "" for none."""


class Answerer(Protocol):
    """Answers requests by a policy. Every method may be called from any thread."""

    @property
    def policy(self) -> Policy:
        """The rule."""

    @property
    def bundle(self) -> Bundle:
        """The model on this machine."""

    def prepare(self, request: Request) -> Request:
        """Whatever a request needs before it is decided on; a second time does nothing."""

    def answer(self, request: Request, *, stop: threading.Event | None = None) -> Iterator[Event]:
        """Blocking: one Opening, Pieces, one Routed; or a Routed alone where nobody answers."""

    def explain(self, request: Request) -> Verdict:
        """The decision; nobody is called."""

    def status(self) -> Status:
        """How things stand."""

    def close(self) -> None:
        """Give up the model."""
