"""One endpoint, and one answer of it."""

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
    """An OpenAI-compatible endpoint that the user named, and nothing but it.

    No variable of the environment has a say except the one that ``tier.key_env`` names: neither OPENAI_* nor proxies,
    nor SSLKEYLOGFILE.
    Thread-safe; connections are kept and shared.

    Args:
        tier: its URL, model, key, deadline, stall and retries.
        environment: where the key's variable is looked up. The key is read anew for every request.
        clock: seconds, never going back.
        sleep: waits between retries; None waits so that ``Reply.close`` ends it.
        random: 0 to 1, for the jitter.
        verify: trusted certificates, None for certifi's. Its log of keys is switched off.
        breaker: when the endpoint is left alone, None for the usual numbers.
        most_bytes: of one answer.

    Raises:
        ConfigError: the key cannot be read, the URL is not one, a key or prompts would cross the internet in the
            clear, or the extra ``serve`` is not installed.
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
        """An answer that is fetched as it is iterated over; nothing is sent before.

        Args:
            asked: what every veto has read, as ``clearance.clear`` gives it; nothing else is posted. A request that
                comes by itself has no policy: its own word, private or local-only, is kept.

        Raises:
            CloudError: it must not go as far as this endpoint, there is nothing to send, or the endpoint was closed.
            ConfigError: the key is gone.
        """
        cleared = asked if isinstance(asked, Cleared) else Cleared.of(asked)
        if self._closed:
            raise CloudError(f"tier '{self.tier.name}' has been closed", "make another Endpoint; nothing was sent")
        if cleared.ceiling == DEVICE or TRUST.index(self.tier.trust) > TRUST.index(cleared.ceiling):
            raise CloudError(f"tier '{self.tier.name}' must not be asked: {cleared.because}", "nothing was sent")
        make_body(cleared.outgoing, self.tier, self._refused)
        return Reply(self, cleared, self.current_key())

    def down(self) -> str:
        """Why nothing can be had from it now, in words; "" when it may be asked."""
        if self.breaker.refused:
            with suppress(ConfigError):
                self.current_key()
        return self.breaker.down()

    def close(self) -> None:
        """Close all connections; answers in the making break off."""
        self._closed = True
        self._client.close()

    def current_key(self) -> Key:
        """The key as it is now. A new one gives an endpoint that refused the old one another chance."""
        key = read_key(self.tier, self._environment)
        with self._lock:
            changed, self._key = key != self._key, key
        if changed and self.breaker.refused:
            self.breaker.succeed()
        return key

    def body(self, cleared: Cleared) -> dict[str, Any]:
        """What is posted, as far as the endpoint's habits are known."""
        return make_body(cleared.outgoing, self.tier, self._refused)

    def learn(self, param: str) -> bool:
        """Note a field that the endpoint does not take. False where that is no news."""
        with self._lock:
            news = param in OPTIONAL and param not in self._refused
            self._refused |= {param} if news else frozenset()
        return news

    def call(self) -> Call:
        """A hold on a connection to come."""
        return self._wire.Call(self.clock() + self.tier.deadline, self.clock, self.most_bytes)

    def send(self, cleared: Cleared, call: Call, key: Key) -> Stream[object]:
        """Post what was cleared. Returns the client's stream of events."""
        from openai import Stream

        body = self.body(cleared)
        path = "/chat/completions" if "messages" in body else "/completions"
        with call.sending(key):
            return self._client.post(path, cast_to=object, body=body, stream=True, stream_cls=Stream[object])

    def delay(self, tries: int, failure: Failure, left: float) -> float | None:
        """Seconds to wait before the next try, None where there is none.

        Exponential with full jitter (Brooker, "Exponential Backoff and Jitter"), not shorter than what the endpoint
        asks for; paid from the retry budget.
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
    """An iterator over the pieces of text of one answer; afterwards, what is known of it.

    One thread iterates (not always the same); any may ``close``. Then the iteration ends and ``finish`` is
    ``cancelled``. ``finish`` otherwise: ``stop``, ``length``, ``tool_calls``, ``content_filter``, ``error``; "" before
    the end. ``prompt_tokens`` and ``new_tokens`` are None where the endpoint does not say. ``message``: the message as
    a JSON object where it holds tool calls. ``empty``: it came to its end without a word, which is an error all the
    same. ``tries``: requests that were sent. Seconds count from the first ``next``.

    Raises, when iterated over:
        CloudError: no answer, or only a part of one (``shown``).
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
        """Cut the connection if the answer is not complete. From any thread; more than once does no harm."""
        with self._lock:
            self._closed = True
            call = self._call
        if call is not None:
            call.cancel()
        if self._turn.acquire(blocking=False):  # else another thread is in it, and the cut connection wakes it up
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
            raise CloudError(f"tier '{endpoint.tier.name}' is left alone: {reason}", "nothing was sent")
        endpoint.budget.deposit()
        started = endpoint.clock()
        with self._lock:
            self._call = call = endpoint.call()
            if self._closed:
                call.cancel()
        told = False
        try:
            while True:
                yield from self._attempt(call, started)
                wait = self._next_try(call, trial)
                if wait is None:
                    break
                endpoint.pause(wait, call)
            told = self._tell(trial)
        finally:
            self.seconds = endpoint.clock() - started
            call.release()
            if not told:
                self.finish = self.finish or "cancelled"
                endpoint.breaker.leave(trial)
        if self._failure is not None and self._failure.blame != "nobody":
            raise self._failure.error

    def _attempt(self, call: Call, started: float) -> Iterator[str]:
        """Send once and give out the text. What went wrong is in ``_failure`` then, to be raised without its causes."""
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
                self._failure = make(tier, "answered with something that is no stream", _NO_STREAM)
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
            # What comes after the end of the answer is only its usage.
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
        """Whether what came is an answer."""
        tier = self._endpoint.tier
        if not answer.finish:
            if call.cancelled.is_set():
                return make(tier, "was cancelled", CANCELLED, "nobody", shown=self._shown)
            return cut_off(tier, self._shown)
        self.empty = answer.empty
        if answer.empty:
            if answer.finish == "content_filter":
                return make(tier, "withheld its answer (content_filter)", "put the question differently", "request")
            hint = "give it more tokens: it may think before it answers" if answer.finish == "length" else ""
            return make(tier, "gave an empty answer", hint or "try again later")
        self.finish, self.message = answer.finish, answer.message()
        self.prompt_tokens, self.new_tokens = answer.prompt_tokens, answer.new_tokens
        return None

    def _next_try(self, call: Call, trial: bool) -> float | None:
        """Seconds until the next try, None for none."""
        failure = self._failure
        if failure is None or self._shown:
            return None
        if failure.param and self._endpoint.learn(failure.param):
            return 0.0  # the same question in the endpoint's own words: that is no retry
        return None if trial else self._endpoint.delay(self.tries - 1, failure, call.remaining())

    def _tell(self, trial: bool) -> bool:
        """Tell the breaker how it went. False where that says nothing of the endpoint."""
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


_NO_STREAM = "it must send text/event-stream; is the URL that of an OpenAI-compatible endpoint?"


def _check_url(tier: Tier) -> None:
    """Raise ConfigError unless the URL is one that may be asked."""
    try:
        url = urlsplit(tier.url)
        port = url.port
    except ValueError:
        raise ConfigError(f"tier '{tier.name}': the URL is not one", "https://host/v1") from None
    if url.scheme not in ("http", "https") or not url.hostname or port == 0:
        raise ConfigError(f"tier '{tier.name}': the URL must be http or https, with a host", "https://host/v1")
    if url.username or url.password or url.query or url.fragment:
        raise ConfigError(
            f"tier '{tier.name}': the URL holds a user name, a password or a query",
            "URLs are logged and shown: put the key into key_env or key_file",
        )
    if url.scheme == "http" and tier.trust == "third-party" and url.hostname not in _LOCAL:
        raise ConfigError(
            f"tier '{tier.name}': prompts and key would cross the network in the clear", "use https, or trust private"
        )
