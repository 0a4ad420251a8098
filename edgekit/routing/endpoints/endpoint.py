"""An OpenAI-compatible endpoint, and one of its answers."""

from __future__ import annotations

import random as random_module
import time
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from edgekit.errors import CloudError, ConfigError
from edgekit.routing.endpoints.answer import Answer
from edgekit.routing.endpoints.body import OPTIONAL, make_body, texts
from edgekit.routing.endpoints.breaker import Breaker, RetryBudget
from edgekit.routing.endpoints.failures import CANCELLED, Failure, Secrets, cut_off, explain, make
from edgekit.routing.endpoints.keys import Key, read_key
from edgekit.types.outgoing import Cleared
from edgekit.types.routing import DEVICE, TRUST

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterator, Mapping
    from types import TracebackType

    from openai import Stream

    from edgekit.routing.endpoints.wire import Call
    from edgekit.types.routing import Request, Tier

MOST_BYTES = 16 * 2**20
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class Endpoint:
    """An OpenAI-compatible endpoint of the policy.

    The environment is ignored, including OPENAI_*, proxies and SSLKEYLOGFILE, except for the variable ``tier.key_env``.
    Thread-safe; connections are kept and shared.

    Args:
        tier: its URL, model, key, deadline, stall and retries.
        environment: the variables in which the key is looked up, again for every request.
        clock: monotonic time in seconds.
        sleep: waits between retries; by default a wait that ``Reply.close`` ends.
        random: returns 0 to 1, for the jitter.
        verify: context with the trusted certificates, None for certifi's. Its key log is switched off.
        breaker: the circuit breaker, None for one with default numbers.
        most_bytes: most bytes of one answer.

    Raises:
        ConfigError: the key cannot be read, the URL is invalid, prompts and key would be sent unencrypted to a third
            party, or the extra ``serve`` is not installed.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        environment: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        random: Callable[[], float] = random_module.random,
        verify: ssl.SSLContext | None = None,
        breaker: Breaker | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        _check_url(tier)
        try:
            from edgekit.routing.endpoints import wire
        except ImportError as error:
            raise ConfigError(f"tiers need {error.name or 'openai'}", "pip install 'edgekit[serve]'") from error
        self.tier = tier
        self.clock = clock
        self.most_bytes = most_bytes
        self.breaker = breaker or Breaker(clock)
        self.budget = RetryBudget()
        self._sleep = sleep
        self._random = random
        self._environment = environment
        self._lock = Lock()
        self._closed = False
        self._key = read_key(tier, environment)
        self._refused: frozenset[str] = frozenset()
        self._wire = wire
        self._client = wire.open_client(tier.url, stall=tier.stall, deadline=tier.deadline, verify=verify)

    def ask(self, asked: Cleared | Request) -> Reply:
        """Return an answer that is fetched while it is iterated over; nothing is sent before.

        Args:
            asked: the part of a request that ``clearance.clear`` cleared; nothing else is posted. For a bare request,
                without a policy, its own ``private`` and ``local-only`` apply.

        Raises:
            CloudError: the request must not go to this endpoint, there is nothing to send, or the endpoint is closed.
            ConfigError: the key can no longer be read.
        """
        cleared = asked if isinstance(asked, Cleared) else Cleared.of(asked)
        if self._closed:
            raise CloudError(f"tier '{self.tier.name}' is closed", "open another Endpoint; nothing was sent")
        if cleared.ceiling == DEVICE or TRUST.index(self.tier.trust) > TRUST.index(cleared.ceiling):
            raise CloudError(f"tier '{self.tier.name}' must not get the request: {cleared.because}", "nothing was sent")
        make_body(cleared.outgoing, self.tier, self._refused)
        return Reply(self, cleared, self.current_key())

    def down(self) -> str:
        """Return why the endpoint cannot be asked now; "" if it can."""
        if self.breaker.refused:
            with suppress(ConfigError):
                self.current_key()
        return self.breaker.down()

    def close(self) -> None:
        """Close all connections; answers in progress break off."""
        self._closed = True
        self._client.close()

    def current_key(self) -> Key:
        """Read the key again. A changed key closes the breaker of an endpoint that refused the old one."""
        key = read_key(self.tier, self._environment)
        with self._lock:
            changed, self._key = key != self._key, key
        if changed and self.breaker.refused:
            self.breaker.succeed()
        return key

    def body(self, cleared: Cleared) -> dict[str, Any]:
        """Return the body to post, without the fields that the endpoint is known to reject."""
        return make_body(cleared.outgoing, self.tier, self._refused)

    def learn(self, param: str) -> bool:
        """Record a field that the endpoint rejects. Returns whether it is a new, optional one."""
        with self._lock:
            news = param in OPTIONAL and param not in self._refused
            self._refused |= {param} if news else frozenset()
        return news

    def call(self) -> Call:
        """Return the control of a connection that is yet to be made."""
        return self._wire.Call(self.clock() + self.tier.deadline, self.clock, self.most_bytes)

    def send(self, cleared: Cleared, call: Call, key: Key) -> Stream[object]:
        """Post the cleared part. Returns the client's stream of events."""
        from openai import Stream

        body = self.body(cleared)
        path = "/chat/completions" if "messages" in body else "/completions"
        with call.sending(key):
            return self._client.post(path, cast_to=object, body=body, stream=True, stream_cls=Stream[object])

    def delay(self, tries: int, failure: Failure, left: float) -> float | None:
        """Return the seconds to wait before the next try, None to stop.

        Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter"), added to the wait that the
        endpoint asks for; paid from the retry budget.
        """
        if not failure.again or tries >= self.tier.retries:
            return None
        wait = self._random() * min(LONGEST_DELAY, FIRST_DELAY * 2**tries)
        wait += failure.error.retry_after or 0.0
        return wait if wait < left and self.budget.withdraw() else None

    def pause(self, wait: float, call: Call) -> None:
        """Wait before a retry."""
        if self._sleep is None:
            call.cancelled.wait(wait)
        else:
            self._sleep(wait)


class Reply:
    """An iterator over the pieces of text of one answer, and its result.

    One thread at a time iterates; any thread may ``close``, which ends the iteration with ``finish`` ``cancelled``.
    Other values of ``finish``: ``stop``, ``length``, ``tool_calls``, ``content_filter``, ``error``; "" before the end.
    ``prompt_tokens`` and ``new_tokens`` are None if the endpoint does not report them. ``message``: the message as a
    JSON object if it has tool calls. ``empty``: the answer ended without text, which is an error. ``tries``: number of
    requests sent. Seconds count from the first ``next``.

    Raises, when iterated over:
        CloudError: there is no answer, or only a part of one (``shown``).
    """

    def __init__(self, endpoint: Endpoint, cleared: Cleared, key: Key) -> None:
        self.finish = ""
        self.prompt_tokens: int | None = None
        self.new_tokens: int | None = None
        self.message = ""
        self.empty = False
        self.seconds_to_first: float | None = None
        self.seconds = 0.0
        self.tries = 0
        self._endpoint = endpoint
        self._cleared = cleared
        self._key = key
        self._call: Call | None = None
        self._failure: Failure | None = None
        self._shown = False
        self._closed = False
        self._lock = Lock()
        self._turn = Lock()
        self._pieces = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        with self._turn:
            return next(self._pieces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut the connection if the answer is not complete. Idempotent; may be called from any thread."""
        with self._lock:
            self._closed = True
            call = self._call
        if call is not None:
            call.cancel()
        if self._turn.acquire(blocking=False):  # else another thread is reading, and the cut connection wakes it up
            try:
                self._pieces.close()
            finally:
                self._turn.release()
            self.finish = self.finish or "cancelled"

    def _run(self) -> Generator[str]:
        endpoint = self._endpoint
        reason, trial = endpoint.breaker.enter()
        if reason:
            self.finish = "error"
            raise CloudError(f"tier '{endpoint.tier.name}' is paused: {reason}", "nothing was sent")
        endpoint.budget.deposit()
        started = endpoint.clock()
        with self._lock:
            self._call = call = endpoint.call()
            if self._closed:
                call.cancel()
        reported = False
        try:
            while True:
                yield from self._attempt(call, started)
                wait = self._next_try(call, trial)
                if wait is None:
                    break
                endpoint.pause(wait, call)
            reported = self._report(trial)
        finally:
            self.seconds = endpoint.clock() - started
            call.release()
            if not reported:
                self.finish = self.finish or "cancelled"
                endpoint.breaker.leave(trial)
        if self._failure is not None and self._failure.blame != "nobody":
            raise self._failure.error

    def _attempt(self, call: Call, started: float) -> Iterator[str]:
        """Send once and yield the text. An error is kept in ``_failure``, to be raised without its causes."""
        import httpx
        import openai

        self._failure = None
        self.tries += 1
        endpoint, tier = self._endpoint, self._endpoint.tier
        answer = Answer()
        stream: Stream[object] | None = None
        try:
            stream = endpoint.send(self._cleared, call, self._key)
            kind = stream.response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                self._failure = make(tier, "did not answer with a stream", _NO_STREAM)
                return
            for event in stream:
                text = answer.take(event)
                if answer.finish and not call.finished:
                    call.finish()
                if text:
                    if self.seconds_to_first is None:
                        self.seconds_to_first = endpoint.clock() - started
                    self._shown = True
                    yield text
        except (openai.OpenAIError, httpx.HTTPError, httpx.StreamError, ValueError, RecursionError, OSError) as error:
            # Only the usage follows the end of the answer.
            if not answer.finish or call.ended not in ("", "deadline"):
                secrets = Secrets(self._key, texts(endpoint.body(self._cleared)))
                self._failure = explain(error, tier, secrets, call.ended, self._shown)
        finally:
            if stream is not None:
                with suppress(httpx.HTTPError, OSError):
                    stream.close()
        if self._failure is None:
            self._failure = self._judge(answer, call)

    def _judge(self, answer: Answer, call: Call) -> Failure | None:
        """Take over the answer, or return why it is not one."""
        tier = self._endpoint.tier
        if not answer.finish:
            if call.cancelled.is_set():
                return make(tier, "was cancelled", CANCELLED, "nobody", shown=self._shown)
            return cut_off(tier, self._shown)
        self.empty = answer.empty
        if answer.empty:
            if answer.finish == "content_filter":
                return make(tier, "withheld its answer (content_filter)", "rephrase the question", "request")
            hint = "allow more tokens: the model may reason before it answers" if answer.finish == "length" else ""
            return make(tier, "sent an empty answer", hint or "try again later")
        self.finish, self.message = answer.finish, answer.message()
        self.prompt_tokens, self.new_tokens = answer.prompt_tokens, answer.new_tokens
        return None

    def _next_try(self, call: Call, trial: bool) -> float | None:
        """Return the seconds until the next try, None to stop."""
        failure = self._failure
        if failure is None or self._shown:
            return None
        if failure.param and self._endpoint.learn(failure.param):
            return 0.0  # not a retry: the same question without the rejected field
        return None if trial else self._endpoint.delay(self.tries - 1, failure, call.remaining())

    def _report(self, trial: bool) -> bool:
        """Report the outcome to the breaker. Returns False if it says nothing about the endpoint."""
        failure, breaker = self._failure, self._endpoint.breaker
        if failure is None:
            breaker.succeed()
            return True
        if failure.blame == "nobody":
            return False
        self.finish = "error"
        if failure.blame == "request":
            breaker.succeed()
        elif failure.blame == "account":
            breaker.refuse(failure.reason)
        elif failure.error.status in (429, 503) and failure.error.retry_after:
            breaker.hold(failure.reason, failure.error.retry_after)
        else:
            breaker.fail(failure.reason, trial)
        return True


_NO_STREAM = "check that the URL is that of an OpenAI-compatible endpoint, which streams text/event-stream"


def _check_url(tier: Tier) -> None:
    """Raise ConfigError unless the URL is valid and may be asked."""
    try:
        url = urlsplit(tier.url)
        port = url.port
    except ValueError:
        raise ConfigError(f"tier '{tier.name}': the URL is invalid", "give one such as https://host/v1") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise ConfigError(
            f"tier '{tier.name}': the URL must be http or https, with a host", "give one such as https://host/v1"
        )
    if url.username or url.password or url.query or url.fragment:
        raise ConfigError(
            f"tier '{tier.name}': the URL holds a user name, a password or a query",
            "give the key by key_env or key_file: URLs are logged and shown",
        )
    if url.scheme == "http" and tier.trust == "third-party" and url.hostname not in _LOCAL:
        raise ConfigError(
            f"tier '{tier.name}': prompts and key would be sent unencrypted", "use https, or trust = 'private'"
        )
