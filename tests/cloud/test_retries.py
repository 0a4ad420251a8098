"""What is tried again, how long is waited, and when an endpoint is is paused."""

from __future__ import annotations

import threading

import pytest

from edgekit.errors import CloudError
from edgekit.routing.endpoints import Breaker, RetryBudget
from tests.cloud.loopback import question, serve


def patient(clock, jitter: float = 0.5, **more: object) -> dict[str, object]:
    return {"clock": clock, "sleep": clock.sleep, "random": lambda: jitter, **more}


def failing(far) -> CloudError:
    with pytest.raises(CloudError) as failed:
        list(far.ask(question()))
    return failed.value


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(endpoint, clock, status):
    with serve(lambda c: c.error(status), lambda c: c.answer("at last")) as server:
        reply = endpoint(server.url, options=patient(clock), retries=2).ask(question())
        assert "".join(reply) == "at last"
    assert reply.tries == 2
    assert clock.slept == [0.25]
    assert [h.body for h in server.heard[:1]] == [h.body for h in server.heard[1:]]


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422, 501])
def test_what_will_not_pass_is_not(endpoint, clock, status):
    with serve(lambda c: c.error(status), lambda c: c.answer("x")) as server:
        assert failing(endpoint(server.url, options=patient(clock), retries=2)).status == status
        assert len(server.heard) == 1
    assert clock.slept == []


def test_a_connection_that_breaks_before_any_text_is_tried_again(endpoint, clock):
    def opened(c):
        c.stream()
        c.say("")
        c.cut()

    with serve(lambda c: c.cut(), opened, lambda c: c.answer("x")) as server:
        assert "".join(endpoint(server.url, options=patient(clock), retries=2).ask(question())) == "x"
        assert len(server.heard) == 3
    assert clock.slept == [0.25, 0.5]


def test_the_last_error_is_told_when_retries_are_used_up(endpoint, clock):
    with serve(lambda c: c.error(500), lambda c: c.error(500), lambda c: c.error(502, "gateway")) as server:
        assert failing(endpoint(server.url, options=patient(clock), retries=2)).status == 502
        assert len(server.heard) == 3


def test_waiting_grows_and_is_jittered(endpoint, clock):
    for jitter, slept in ((1.0, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]), (0.0, [0.0] * 6)):
        clock.slept.clear()
        with serve(lambda c: c.error(500)) as server:
            far = endpoint(server.url, options=patient(clock, jitter), retries=6, deadline=100.0)
            for _ in range(50):
                far.budget.deposit()
            failing(far)
        assert clock.slept == slept


def test_retry_after_is_honoured_where_it_fits(endpoint, clock):
    with serve(lambda c: c.error(429, retry_after="3"), lambda c: c.answer("x")) as server:
        assert "".join(endpoint(server.url, options=patient(clock), retries=1).ask(question())) == "x"
    assert clock.slept == [3.25]


def test_and_ends_it_at_once_where_it_does_not(endpoint, clock):
    with serve(lambda c: c.error(429, retry_after="30")) as server:
        far = endpoint(server.url, options=patient(clock), retries=2)
        error = failing(far)
        assert (error.status, error.retry_after) == (429, 30.0)
        assert "30 s" in error.hint
        assert len(server.heard) == 1
        assert "limits the rate of requests" in far.down()
        clock.now += 29
        assert far.down()
        clock.now += 2
        assert far.down() == ""
    assert clock.slept == []


def test_retries_end_with_the_deadline(endpoint, clock):
    with serve(lambda c: c.error(503)) as server:
        far = endpoint(server.url, options=patient(clock, 1.0), retries=50, deadline=3.0)
        for _ in range(50):
            far.budget.deposit()
        failing(far)
        assert clock.slept == [0.5, 1.0]
        assert len(server.heard) == 3


def test_a_dead_endpoint_is_not_hammered(endpoint, clock):
    with serve(lambda c: c.error(500)) as server:
        breaker = Breaker(clock, failures=10_000)
        far = endpoint(server.url, options=patient(clock, breaker=breaker), retries=3)
        for _ in range(100):
            failing(far)
        assert 100 + 20 <= len(server.heard) <= 100 + 22


def test_the_budget_saves_up_to_a_limit():
    budget = RetryBudget(share=0.2, most=10)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(5):
        budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    for _ in range(1000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(100)) == 10


# --- the breaker --------------------------------------------------------------------------------


def test_it_opens_after_failures_in_a_row_and_tries_once_after_a_pause(endpoint, clock):
    healthy = threading.Event()
    with serve(lambda c: c.answer("x") if healthy.is_set() else c.error(500)) as server:
        far = endpoint(server.url, options=patient(clock))
        for _ in range(5):
            assert far.down() == ""
            failing(far)
        assert "failed (500" in far.down()
        assert "is paused" in failing(far).message
        assert len(server.heard) == 5
        clock.now += 31
        assert far.down() == ""
        failing(far)
        assert len(server.heard) == 6
        clock.now += 31
        assert far.down(), "the second pause is twice as long"
        clock.now += 31
        healthy.set()
        assert "".join(far.ask(question())) == "x"
        assert far.down() == ""
        healthy.clear()
        failing(far)
        assert far.down() == "", "one failure after a success does not open it"


def test_a_success_in_between_starts_the_count_anew(endpoint, clock):
    turns = iter([500, 500, 500, 500, 200, 500, 500, 500, 500])
    with serve(lambda c: c.answer("x") if (s := next(turns)) == 200 else c.error(s)) as server:
        far = endpoint(server.url, options=patient(clock))
        for i in range(9):
            if i == 4:
                list(far.ask(question()))
            else:
                failing(far)
        assert far.down() == ""


def test_while_one_request_tries_the_others_wait(clock):
    breaker = Breaker(clock, failures=1, pause=10)
    breaker.fail("broken", trial=False)
    clock.now += 11
    assert breaker.enter() == ("", True)
    assert breaker.enter() == ("broken; a trial request is in progress", False)
    assert breaker.down() == "broken; a trial request is in progress"
    breaker.leave(True)
    assert breaker.enter() == ("", True), "a trial that was cancelled leaves its place to another"
    breaker.succeed()
    assert breaker.enter() == breaker.enter() == ("", False)


def test_late_failures_neither_shorten_nor_lengthen_a_pause(clock):
    breaker = Breaker(clock, failures=1, pause=10)
    breaker.refuse("key")
    breaker.hold("busy", 5)
    breaker.fail("late", trial=False)
    clock.now += 100
    assert breaker.down().startswith("key")
    clock.now += 201
    assert breaker.down() == ""


def test_a_trial_is_not_retried(endpoint, clock):
    with serve(lambda c: c.error(500)) as server:
        far = endpoint(server.url, options=patient(clock, breaker=Breaker(clock, failures=1)), retries=0)
        failing(far)
        clock.now += 31
        far2 = endpoint(server.url, options=patient(clock, breaker=far.breaker), retries=3)
        failing(far2)
        assert len(server.heard) == 2


def test_a_trial_that_is_cancelled_leaves_its_place_to_another(endpoint, clock):
    def script(c):
        c.stream()
        c.say("one")
        c.hang()

    with serve(lambda c: c.error(500), script) as server:
        far = endpoint(server.url, options=patient(clock, breaker=Breaker(clock, failures=1)))
        failing(far)
        clock.now += 31
        with far.ask(question()) as reply:
            assert next(reply) == "one"
            assert "a trial request is in progress" in far.down()
            assert "is paused" in failing(far).message
        assert far.down() == ""
        assert len(server.heard) == 2


def test_a_refused_key_closes_the_door_until_there_is_another(endpoint, clock):
    environment = {"FAR_KEY": "old-key-1234567"}

    def script(c):
        if "new-key" in c.heard.headers["authorization"]:
            c.answer("welcome")
        else:
            c.error(401)

    with serve(script) as server:
        far = endpoint(server.url, options=patient(clock, environment=environment))
        failing(far)
        assert "does not accept the key" in far.down()
        clock.now += 200
        assert far.down()
        del environment["FAR_KEY"]
        assert far.down(), "no key is no better than a refused one"
        environment["FAR_KEY"] = "new-key-1234567"
        assert far.down() == ""
        assert "".join(far.ask(question())) == "welcome"


def test_sixteen_threads_ask_a_broken_endpoint_and_it_is_asked_no_more_than_once_each(endpoint, clock):
    with serve(lambda c: c.error(500)) as server:
        far = endpoint(server.url, options=patient(clock, breaker=Breaker(clock, failures=3)))
        errors = []

        def ask() -> None:
            for _ in range(5):
                errors.append(failing(far))  # noqa: PERF401

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(errors) == 80
        assert 3 <= len(server.heard) <= 18
        assert "next try in 30 s" in far.down(), "failures of requests in flight do not lengthen the pause"
