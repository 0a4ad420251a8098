"""Local when you can, cloud when you must: combine a bundle, a policy and the policy's endpoints.

A request is decided on (``decide``), answered on the device if its checks pass, checked (``judge``), and passed on to
an endpoint if necessary. One answer never mixes the text of two tiers: text that may still be discarded is not shown.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event as Signal
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Self

from edgekit.errors import CloudError, ConfigError, RunError
from edgekit.measure import choose_meter
from edgekit.routing.binding import check_binding, check_second
from edgekit.routing.budget import Ledger
from edgekit.routing.clearance import clear
from edgekit.routing.decision.answer_checks import check_calibrated, judge, judge_prefix
from edgekit.routing.decision.decide import decide, escalate
from edgekit.routing.decision.drift import measure_drift
from edgekit.routing.decision.lengths import least_tokens, limited
from edgekit.routing.decision.loops import LoopWatch
from edgekit.routing.decision.schema import check_schema
from edgekit.routing.device import LocalModel
from edgekit.routing.endpoints import Endpoint
from edgekit.routing.prepare import Counter
from edgekit.routing.retrieval import Grounding
from edgekit.routing.state import Gauge, find_measurement
from edgekit.types.routing import DEVICE, Attempt, Finding, Opening, Piece, Routed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence
    from pathlib import Path

    from edgekit.routing.decision.drift import Drift
    from edgekit.routing.decision.loops import Loop
    from edgekit.routing.device import LocalRun
    from edgekit.routing.endpoints import Reply
    from edgekit.types import Bundle, Measurement, PowerProbe
    from edgekit.types.calibration import Calibration, Signals
    from edgekit.types.routing import DeviceState, Event, Policy, Request, Tier, Verdict

LIVE = 500
"""Number of latest local answers whose scores are compared with the calibration's."""

_LOOK = 0.05
"""Seconds between two checks whether the caller of an endpoint has gone."""


@dataclass(frozen=True)
class RouterStatus:
    """The router's current status.

    ``waiting`` counts local answers in progress or queued. ``meter`` is "" if there is none; ``documents`` is a
    sentence about the user's documents, "" without any.
    """

    waiting: int
    down: tuple[tuple[str, str], ...]
    spent_today: float
    drift: Drift | None
    meter: str
    documents: str


def open_router(
    bundle: Bundle,
    policy: Policy,
    *,
    environment: Mapping[str, str] = os.environ,
    spent: float = 0.0,
    documents: Path | None = None,
    threads: int | None = None,
    context: int | None = None,
    small_memory: bool = False,
    second: Bundle | None = None,
) -> Router:
    """Open a bundle and the endpoints of a policy; nothing is sent.

    Args:
        bundle: the opened bundle; its calibration is used if it has one.
        policy: the policy.
        environment: the variables in which keys are looked up.
        spent: money already spent today, in the policy's currency.
        documents: a folder of the user's documents, from which questions are answered.
        threads: as in load_runner.
        context: as in load_runner.
        small_memory: as in load_runner.
        second: the bundle whose opinion the calibration's score uses, if it uses one.

    Raises:
        ConfigError: a key or a tokenizer cannot be read; the policy exceeds the calibration's guarantee; the second
            bundle is missing, another one, or not used.
        RouteError: the calibration is for something else.
        RunError: the bundle cannot be run here.
    """
    check_second(bundle.manifest.calibration, second)
    endpoints = [Endpoint(tier, environment=environment) for tier in policy.tiers]
    local = LocalModel(bundle, threads=threads, context=context, small_memory=small_memory)
    grounding = None
    if documents:
        grounding = Grounding(
            documents, context=local.context_length, count=lambda text: len(local.tokenizer.encode(text))
        )
    opinion = LocalModel(second, threads=threads, small_memory=small_memory) if second else None
    return Router(
        local, policy, endpoints=endpoints, spent=spent, grounding=grounding, small_memory=small_memory, second=opinion
    )


class Router:
    """Answers requests. ``answer`` may be called by many threads at once; the device answers one request at a time."""

    def __init__(
        self,
        local: LocalModel,
        policy: Policy,
        *,
        endpoints: Sequence[Endpoint] = (),
        spent: float = 0.0,
        grounding: Grounding | None = None,
        small_memory: bool = False,
        second: LocalModel | None = None,
    ) -> None:
        """Combine opened parts. Args and errors: as open_router."""
        self.bundle = local.bundle
        self.policy = policy
        self.calibration: Calibration | None = local.bundle.manifest.calibration
        if self.calibration:
            check_binding(local.bundle, self.calibration)
        check_second(self.calibration, second.bundle if second else None)
        check_calibrated(policy, self.calibration)
        self.measurement: Measurement | None = find_measurement(local.bundle)[0]
        self.ledger = Ledger(per_day=policy.budget.per_day, spent=spent)
        self.grounding = grounding
        self._local = local
        self._second = second
        self._counter = Counter(local.tokenizer, policy, context=local.context_length)
        self._endpoints = {endpoint.tier.name: endpoint for endpoint in endpoints}
        self._gauge = Gauge(local.bundle.manifest, loaded=True, context=local.context_length, small_memory=small_memory)
        self._live: deque[float] = deque(maxlen=LIVE)
        self._meter, _ = choose_meter()

    def prepare(self, request: Request) -> Request:
        """Add passages of the user's documents, count tokens for each tier, detect the language. Does nothing twice.

        Raises:
            RouteError: the request's schema is not supported.
        """
        if request.tokens:
            return request
        if ruled_out := self._counter.rule_out(request):
            return ruled_out
        if request.schema:
            check_schema(request.schema)
        return self._counter.prepare(self.grounding.ground(request) if self.grounding else request)

    def explain(self, request: Request) -> Verdict:
        """Decide without sending anything."""
        request = self.prepare(request)
        return decide(request, self.policy, self._state(request), self.measurement)

    def answer(self, request: Request, *, stop: Signal | None = None) -> Iterator[Event]:
        """Answer a request in the caller's thread. Yields an Opening, Pieces and a Routed; or only a Routed.

        Args:
            request: the request, prepared or not.
            stop: ends the answer when it is set, from any thread; closing the iterator ends it too.

        Raises:
            RouteError: the request's schema is not supported. Any other failure is reported in the Routed.
        """
        return _Answer(self, self.prepare(request), stop or Signal()).events()

    def status(self) -> RouterStatus:
        """Return the current status."""
        return RouterStatus(
            waiting=self._local.ahead,
            down=self._down(),
            spent_today=self.ledger.spent,
            drift=measure_drift(self._live, self.calibration.scores) if self.calibration else None,
            meter=self._meter.name if self._meter else "",
            documents=self.grounding.words if self.grounding else "",
        )

    def close(self) -> None:
        """Release the model after the current answer has ended, and close all connections."""
        self._local.close()
        if self._second:
            self._second.close()
        for endpoint in self._endpoints.values():
            endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _down(self) -> tuple[tuple[str, str], ...]:
        """Return the tiers that cannot be asked now, each with the reason."""
        reasons = ((tier.name, self._why_down(tier)) for tier in self.policy.tiers)
        return tuple((name, reason) for name, reason in reasons if reason)

    def _why_down(self, tier: Tier) -> str:
        endpoint = self._endpoints.get(tier.name)
        return endpoint.down() if endpoint else "its endpoint is not open"

    def _state(self, request: Request) -> DeviceState:
        return self._gauge.read(
            least_tokens(request),
            waiting=self._local.waiting(),
            spent_today=self.ledger.committed,
            unreachable=self._down(),
        )


class _Answer:
    """The state of one request while tiers try to answer it."""

    def __init__(self, router: Router, request: Request, stop: Signal) -> None:
        self._router = router
        self._request = request
        self._stop = stop
        self._started = monotonic()
        self._first: float | None = None
        self._attempts: list[Attempt] = []
        self._device_seconds = 0.0
        self._joules: float | None = None
        self._signals: Signals | None = None
        self._wrong: float | None = None
        self._kept: Routed | None = None
        """The complete local answer that failed its checks, kept as the last resort."""

    def events(self) -> Generator[Event]:
        router, request = self._router, self._request
        verdict = decide(request, router.policy, router._state(request), router.measurement)
        while True:
            if verdict.tier == "":
                yield self._end(verdict, "", "error")
                return
            if verdict.tier == DEVICE and self._kept is not None:
                kept = replace(self._kept, verdict=verdict)
                yield from self._show(verdict, kept.text)
                yield self._end(verdict, kept.text, kept.finish, kept.prompt_tokens, kept.new_tokens)
                return
            step = self._ask_device if verdict.tier == DEVICE else self._ask_endpoint
            following = yield from step(verdict)
            if following is None:
                return
            verdict = following

    # --- the device ---

    def _ask_device(self, verdict: Verdict) -> Generator[Event, None, Verdict | None]:
        """Answer on the device. Returns the verdict to continue with, None if the request is finished."""
        router, policy = self._router, self._router.policy
        passed_on = bool(verdict.ladder)
        at_once = not passed_on or policy.show == "at-once"
        prefix = router.calibration.prefix if router.calibration and passed_on and not at_once else None
        # Without a limit of the answer, the time to its first token is the least to expect.
        least = verdict.expected.seconds or verdict.expected.seconds_to_first
        run = router._local.answer(limited(self._request, verdict), expected=least, stop=self._stop)
        watch, hidden, open_ = LoopWatch(), "", False
        given_up: Finding | None = None
        try:
            with _metered(router._meter) as joules:
                for emitted in run:
                    watch.push(emitted.token)
                    hidden += emitted.text
                    if prefix and len(run.tokens) == prefix.tokens and run.finish is None:
                        finding = judge_prefix(run.signals, router.calibration, policy)
                        if finding and finding.outcome == "fail":
                            given_up = finding
                            break
                        at_once = at_once or policy.show == "prefix"
                    if at_once and hidden:
                        if not open_:
                            yield Opening(verdict)
                            open_ = True
                        yield self._piece(hidden)
                        hidden = ""
                    if watch.loop and policy.answers.repetition and passed_on and not open_:
                        break
                opinion = None if given_up else self._second_opinion(run)
        except RunError as error:
            finding = Finding("reachable", DEVICE, "fail", f"the device failed: {error.message}")
            self._note(run, "failed")
            return self._escalate(verdict, finding)
        finally:
            run.close()
        self._device_seconds += run.seconds
        if joules:
            self._joules = (self._joules or 0.0) + joules[0]
        if given_up:
            self._note(run, f"gave up after {len(run.tokens)} tokens")
            return self._escalate(verdict, given_up)
        if self._stop.is_set():
            yield self._end(verdict, run.text, "cancelled", run.prompt_tokens, len(run.tokens))
            return None
        return (yield from self._weigh(run, verdict, watch.loop, hidden, open_, opinion))

    def _second_opinion(self, run: LocalRun) -> float | None:
        """Return the second bundle's mean log-probability of the answer; None, which counts as wrong, if it fails."""
        second = self._router._second
        if second is None or not run.tokens or self._stop.is_set():
            return None
        began = monotonic()
        try:
            return second.mean_logprob(self._request, run.text)
        except RunError:
            return None
        finally:
            self._device_seconds += monotonic() - began

    def _weigh(
        self, run: LocalRun, verdict: Verdict, loop: Loop | None, hidden: str, shown: bool, opinion: float | None
    ) -> Generator[Event, None, Verdict | None]:
        """Check a local answer and serve it. Returns the verdict to continue with if it is not served."""
        router = self._router
        finish = run.finish or "error"
        self._signals = replace(run.signals, second_logprob=opinion) if run.tokens else None
        judged = judge(
            verdict,
            self._request,
            router.policy,
            router._state(self._request),
            text=run.text,
            finish=finish,
            repeated=loop,
            signals=self._signals,
            calibration=router.calibration,
            measurement=router.measurement,
        )
        self._wrong = judged.wrong
        if judged.wrong is not None:
            router._live.append(judged.wrong)
        ends = "length" if finish in ("length", "context") else "stop"
        if router.grounding:
            router.grounding.remember(self._request, run.text)
        outcome = judged.verdict
        if shown and outcome.tier != DEVICE:
            # An answer that was shown cannot be taken back.
            failed = next((f for f in judged.findings if f.outcome == "fail"), None)
            reason = f"{failed.detail if failed else outcome.reason}, found after the answer was shown"
            findings = (*verdict.findings, *judged.findings)
            outcome = replace(verdict, findings=findings, reason=reason, code=outcome.code, degraded=True)
        if outcome.tier == DEVICE:
            self._note(run, "served")
            yield from self._show(outcome, hidden, opened=shown)
            yield self._end(outcome, run.text, ends, run.prompt_tokens, len(run.tokens))
            return None
        self._note(run, f"not served: {outcome.code}")
        if finish in ("eos", "stop", "length", "context"):
            self._kept = self._end(verdict, run.text, ends, run.prompt_tokens, len(run.tokens))
        return outcome

    def _note(self, run: LocalRun, outcome: str) -> None:
        self._attempts.append(Attempt(DEVICE, outcome, run.waited + run.seconds))

    # --- an endpoint ---

    def _ask_endpoint(self, verdict: Verdict) -> Generator[Event, None, Verdict | None]:
        """Ask an endpoint. Returns the verdict to continue with, None if the request is finished."""
        router, name = self._router, verdict.tier
        endpoint = router._endpoints[name]
        aside = verdict.expected.cost or 0.0
        if not router.ledger.hold(aside):
            return self._escalate(verdict, Finding("money", name, "fail", "the day's budget is spent", None))
        cost, text, shown, begun = 0.0, "", False, monotonic()
        try:
            try:
                reply = endpoint.ask(clear(limited(self._request, verdict), router.policy, router.grounding))
            except (CloudError, ConfigError) as error:
                return self._failed(verdict, error.message, begun)
            with _watched(self._stop, reply):
                try:
                    for piece in reply:
                        if not shown:
                            yield Opening(verdict)
                            shown = True
                        text += piece
                        yield self._piece(piece)
                except CloudError as error:
                    if not shown:
                        return self._failed(verdict, error.message, begun)
                    cost = self._price(reply, endpoint.tier, text)
                    self._attempts.append(Attempt(name, "broke off", monotonic() - begun, cost))
                    reason = f"{error.message}: the answer is incomplete"
                    broken = replace(verdict, reason=reason, code="reachable")
                    yield replace(self._end(broken, text, "error", reply.prompt_tokens, reply.new_tokens), broken=True)
                    return None
                finally:
                    reply.close()
                    # Received tokens are charged even if the answer is not used.
                    cost = self._price(reply, endpoint.tier, text)
            outcome = "cancelled" if reply.finish == "cancelled" else "served"
            self._attempts.append(Attempt(name, outcome, monotonic() - begun, cost))
            if not shown:
                yield Opening(verdict)
            prompt, new = self._usage(reply, endpoint.tier, text)
            yield replace(self._end(verdict, text, reply.finish, prompt, new), message=reply.message)
            return None
        finally:
            router.ledger.settle(aside, cost)

    def _failed(self, verdict: Verdict, why: str, begun: float) -> Verdict | None:
        self._attempts.append(Attempt(verdict.tier, f"failed: {why}", monotonic() - begun))
        return self._escalate(verdict, Finding("reachable", verdict.tier, "fail", why))

    def _usage(self, reply: Reply, tier: Tier, text: str) -> tuple[int, int]:
        return self._router._counter.usage(self._request, tier.name, text, reply.prompt_tokens, reply.new_tokens)

    def _price(self, reply: Reply, tier: Tier, text: str) -> float:
        """Return the price of what was received; 0 if nothing was."""
        if tier.price is None or not (text or reply.message or reply.new_tokens is not None):
            return 0.0
        return tier.price.cost(*self._usage(reply, tier, text))

    # --- both ---

    def _escalate(self, verdict: Verdict, finding: Finding) -> Verdict:
        router, state = self._router, self._router._state(self._request)
        return escalate(verdict, finding, self._request, router.policy, state, router.measurement)

    def _show(self, verdict: Verdict, text: str, *, opened: bool = False) -> Iterator[Event]:
        if not opened:
            yield Opening(verdict)
        if text:
            yield self._piece(text)

    def _piece(self, text: str) -> Piece:
        if self._first is None:
            self._first = monotonic() - self._started
        return Piece(text)

    def _end(
        self, verdict: Verdict, text: str, finish: str, prompt: int | None = None, new: int | None = None
    ) -> Routed:
        counted = prompt is not None and new is not None
        return Routed(
            verdict=verdict,
            text=text,
            finish=finish,
            prompt_tokens=prompt or 0,
            new_tokens=new or 0,
            seconds=monotonic() - self._started,
            seconds_to_first=self._first,
            device_seconds=self._device_seconds,
            joules=self._joules,
            cost=sum(attempt.cost for attempt in self._attempts),
            spared=self._spared(verdict, new or 0) if counted and verdict.tier == DEVICE else None,
            attempts=tuple(self._attempts),
            signals=self._signals,
            wrong=self._wrong,
        )

    def _spared(self, verdict: Verdict, new: int) -> float | None:
        """Return what the first tier of the ladder would have charged for an answer of the same length."""
        tier = next((t for t in self._router.policy.tiers if t.name in verdict.ladder), None)
        return tier.price.cost(self._request.tokens_for(tier.name) or 0, new) if tier and tier.price else None


@contextmanager
def _metered(meter: PowerProbe | None) -> Iterator[list[float]]:
    """Yield a list that holds the block's joules after its end; it stays empty without a meter."""
    joules: list[float] = []
    if meter:
        meter.start()
    try:
        yield joules
    finally:
        if meter:
            joules.append(meter.stop())


@contextmanager
def _watched(stop: Signal, reply: Reply) -> Iterator[None]:
    """Close a reply from another thread when ``stop`` is set: the reading thread may be blocked."""
    over = Signal()

    def watch() -> None:
        while not over.wait(_LOOK):
            if stop.is_set():
                reply.close()
                return

    thread = Thread(target=watch, name="edgekit-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
