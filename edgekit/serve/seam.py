"""What the server needs of a router: the one in ``edgekit.router``, or a double in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from edgekit.routing import Event, Policy, Request, Verdict
    from edgekit.types import Bundle


class Status(Protocol):
    """A dataclass of the router's that says how things stand; the page shows it as it is."""

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""

    @property
    def spent_today(self) -> float:
        """In the policy's currency."""


class Answerer(Protocol):
    """Answers requests by a policy. Every method may be called from any thread."""

    @property
    def policy(self) -> Policy:
        """The rule."""

    @property
    def bundle(self) -> Bundle:
        """The model on this machine."""

    def answer(self, request: Request, *, stop: threading.Event | None = None) -> Iterator[Event]:
        """Blocking: one Opening, Pieces, one Routed; or a Routed alone where nobody answers."""

    def explain(self, request: Request) -> Verdict:
        """The decision; nobody is called."""

    def prepare(self, request: Request) -> Request:
        """The request with its tokens counted and its language looked at."""

    def status(self) -> Status:
        """How things stand."""

    def close(self) -> None:
        """Give up the model."""
