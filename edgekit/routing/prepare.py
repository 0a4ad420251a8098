"""Prepare a request for the decision: count its tokens for each tier, and detect its language.

Tokenizers are loaded once; tokenizing the text takes most of the time. A request that is too long for every tier is
refused before that, by its bytes and the longest token of each vocabulary. Long texts are tokenized one at a time, in a
thread of low priority.
"""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from math import ceil
from threading import get_native_id
from typing import TYPE_CHECKING

from edgekit.errors import ConfigError, RunError
from edgekit.run import Tokenizer
from edgekit.types.routing import DEVICE, Unfit

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgekit.types import Bundle
    from edgekit.types.routing import Policy, Request

PER_MESSAGE = 5
"""Tokens added per message, and once per conversation, for a tier whose chat template is unknown. Llama 3's is as long
as any in use: ``<|start_header_id|>``, the role, ``<|end_header_id|>``, a blank line, ``<|eot_id|>``."""

SURE = 0.5
"""Least probability of a detected language. A word or two, and code, stay below it."""

LONGEST = 2000
"""Characters of a message from which its language is detected."""

LONG = 20_000
"""Characters above which a text counts as long: tokenizing them takes about 20 ms."""

_NICE = 10
"""Niceness of the thread that tokenizes long texts: a tenth of the CPU share of the others under load."""

_DATA = re.compile(r'"data:[^"]*"')


class Counter:
    """Counts the tokens of requests for one bundle and one policy. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, policy: Policy, *, context: int | None = None) -> None:
        """Load the tiers' tokenizers, and a language detector if the policy names languages.

        Args:
            tokenizer: the bundle's tokenizer.
            policy: the policy.
            context: most tokens of a prompt and its answer on the device, None for no limit.

        Raises:
            ConfigError: a tier's tokenizer cannot be read; the policy names languages and py3langid is not installed.
        """
        self._tokenizer = tokenizer
        self._apart = tokenizer.apart()
        self._context = context
        self._tiers = policy.tiers
        self._codecs = {tier.name: _load(tier.name, tier.tokenizer) for tier in policy.tiers if tier.tokenizer}
        named = policy.device.languages or any(tier.languages for tier in policy.tiers)
        self._classify = _language_model() if named else None
        self._slowly = ThreadPoolExecutor(1, thread_name_prefix="edgekit-count", initializer=_give_way)

    @classmethod
    def of(cls, bundle: Bundle, policy: Policy) -> Counter:
        """Make one with the bundle's own tokenizer. Raises BundleError too, if the tokenizer is damaged."""
        return cls(Tokenizer.of(bundle), policy)

    def rule_out(self, request: Request) -> Request | None:
        """Return the request with its least token counts if those are too many for every tier, else None.

        Exact, and without tokenizing: see ``run.reach``. A tier without a ``context`` in the policy, or whose
        tokenizer has no longest token, is never ruled out.
        """
        size = sum(len(text.encode()) for text in _texts(request))
        limits = {DEVICE: self._context, **{tier.name: tier.context for tier in self._tiers}}
        least = {name: self._least(name, size) for name in limits}
        if all(_exceeds(least[name], limit) for name, limit in limits.items()) and request.messages:
            # A chat template may drop a large part of the messages.
            with suppress(RunError):
                text = self._slowly.submit(render_prompt, self._apart, request).result()
                least[DEVICE] = self._least(DEVICE, len(text.encode()))
        if not all(_exceeds(least[name], limit) for name, limit in limits.items()):
            return None
        return replace(request, tokens=tuple((name, count or 0) for name, count in least.items()))

    def _least(self, name: str, size: int) -> int | None:
        """Return the fewest tokens of ``size`` bytes, by the tier's own tokenizer or else the bundle's."""
        reach = self._codecs.get(name, self._tokenizer).reach
        return None if reach is None else ceil(size / reach)

    def prepare(self, request: Request) -> Request:
        """Fill in ``tokens``, ``counted``, ``language``, ``fed`` and ``unfit``.

        The device's count is exact, or missing if its model cannot take the request as input. A tier with a tokenizer
        uses it: exact for a bare prompt, plus PER_MESSAGE tokens per message. For any other tier the bundle's count is
        raised by the tier's ``count_margin``, rounded up. Tools and a schema count as their text; images are not
        counted.
        """
        if sum(map(len, _texts(request))) + len(request.passthrough) + len(request.schema) > LONG:
            return self._slowly.submit(self._prepare, request, self._apart).result()
        return self._prepare(request, self._tokenizer)

    def _prepare(self, request: Request, tokenizer: Tokenizer) -> Request:
        fed, unfit = _feed(tokenizer, request)
        own = None if unfit else len(fed)
        tokens: list[tuple[str, int]] = [] if own is None else [(DEVICE, own)]
        counted = set() if own is None else {DEVICE}
        beside = "\n".join(part for part in (_DATA.sub('""', request.passthrough), request.schema) if part)
        for tier in self._tiers:
            codec = self._codecs.get(tier.name)
            if codec:
                tokens.append((tier.name, _count_plain(request, partial(_length, codec, special=True), beside)))
                if not request.messages and not beside:
                    counted.add(tier.name)
                continue
            if own is None:
                count = _count_plain(request, self._length, beside)
            else:
                count = own + (self._length(beside) if beside else 0)
            tokens.append((tier.name, ceil(count * (1 + tier.count_margin))))
        language = request.language or self._detect(request)
        if _exceeds(own, self._context):
            fed = ()
        return replace(
            request, tokens=tuple(tokens), counted=frozenset(counted), language=language, fed=fed, unfit=unfit
        )

    def usage(self, request: Request, tier: str, text: str, prompt: int | None, new: int | None) -> tuple[int, int]:
        """Return the tokens of a prompt and of its answer: those that the endpoint reported, else counted here.

        Args:
            request: the prepared request.
            tier: the name of the tier that answered.
            text: the answer.
            prompt: the endpoint's count of the prompt, None if it reported none.
            new: the endpoint's count of the answer, None if it reported none.
        """
        if prompt is None:
            prompt = request.tokens_for(tier) or 0
        return prompt, self._length(text) if new is None else new

    def _length(self, text: str) -> int:
        return _length(self._tokenizer, text)

    def _detect(self, request: Request) -> str | None:
        if self._classify is None:
            return None
        asked = [m.content for m in request.messages if m.role == "user"] or [request.text]
        language, probability = self._classify(asked[-1][:LONGEST])
        return language if probability >= SURE else None


def encode_prompt(tokenizer: Tokenizer, request: Request) -> list[int]:
    """Return a prompt's token ids as the bundle's model gets them. Raises as ``render_prompt``."""
    return tokenizer.encode(render_prompt(tokenizer, request), special=not request.messages)


def render_prompt(tokenizer: Tokenizer, request: Request) -> str:
    """Return a prompt's text as the bundle's model gets it.

    Raises:
        RunError: there are messages and no chat template, or the template refuses them.
    """
    if not request.messages:
        return request.prompt
    return tokenizer.render_chat([{"role": m.role, "content": m.content} for m in request.messages])


def _feed(tokenizer: Tokenizer, request: Request) -> tuple[tuple[int, ...], Unfit | None]:
    """Return a prompt's token ids, or why the model cannot take it."""
    if request.messages and not tokenizer.has_chat_template:
        return (), Unfit("no-template", "the model has no chat template: it continues text and takes no messages")
    try:
        fed = tuple(encode_prompt(tokenizer, request))
    except RunError as error:
        return (), Unfit("template", error.message)
    return fed, None if fed else Unfit("empty", "the prompt is empty: there is nothing to continue")


def _count_plain(request: Request, length: Callable[[str], int], beside: str) -> int:
    """Count the tokens of the texts, of what a template adds, and of tools and schema (``beside``)."""
    texts = _texts(request)
    around = PER_MESSAGE * (len(request.messages) + 1) if request.messages else 0
    return sum(map(length, texts)) + around + (length(beside) if beside else 0)


def _length(tokenizer: Tokenizer, text: str, *, special: bool = False) -> int:
    return len(tokenizer.encode(text, special))


def _exceeds(count: int | None, limit: int | None) -> bool:
    """Whether a count is known and above a known limit."""
    return count is not None and limit is not None and count > limit


def _texts(request: Request) -> list[str]:
    return [m.content for m in request.messages] or [request.prompt]


def _give_way() -> None:
    """Lower the priority of this thread, where the system has priorities per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICE)


def _load(tier: str, path: str) -> Tokenizer:
    import tokenizers

    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(
            f"tier '{tier}': the tokenizer {path} cannot be read: {error}",
            "give the path of a tokenizer.json, or remove `tokenizer` to count with the bundle's",
        ) from error


def _language_model() -> Callable[[str], tuple[str, float]]:
    if find_spec("py3langid") is None:
        raise ConfigError(
            "the policy names languages, and detecting them needs py3langid",
            "install edgekit[serve]: pip install 'edgekit[serve]', or remove every languages",
        )
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Policies use ISO 639-1 codes, which have two letters.
    identifier.set_languages([label for label in identifier.labels if len(label) == 2])
    classify: Callable[[str], tuple[str, float]] = identifier.classify
    return classify
