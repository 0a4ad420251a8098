"""Assemble the stream of an endpoint into an answer: text, tool calls, usage, and how it ended."""

from __future__ import annotations

import json
from typing import Any

_FINISH = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}

_MOST_TOKENS = 100_000_000
"""Largest token count that is believed."""


class Answer:
    """One answer in progress. Pass each event of the stream, parsed from JSON, to ``take``.

    ``finish`` is "" until the endpoint reports how the answer ended. Usage is None unless it is reported.
    """

    def __init__(self) -> None:
        self.finish = ""
        self.prompt_tokens: int | None = None
        self.new_tokens: int | None = None
        self._text: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}

    def take(self, event: object) -> str:
        """Process an event. Returns the text that it adds.

        Raises:
            ValueError: the event violates the protocol.
        """
        if not isinstance(event, dict):
            raise ValueError("an event that is not an object")
        self._take_usage(event.get("usage"))
        choices = event.get("choices")
        if choices is None:
            return ""
        if not isinstance(choices, list):
            raise ValueError("choices that are not a list")
        text = "".join(self._take_choice(choice) for choice in choices)
        if text:
            self._text.append(text)
        return text

    @property
    def empty(self) -> bool:
        """Whether there is neither text nor a tool call."""
        return not self._text and not self._calls

    def message(self) -> str:
        """Return the message as a JSON object if it has tool calls, else ""."""
        if not self._calls:
            return ""
        calls = [self._calls[i] for i in sorted(self._calls)]
        message = {"role": "assistant", "content": "".join(self._text) or None, "tool_calls": calls}
        return json.dumps(message, ensure_ascii=False)

    def _take_choice(self, choice: object) -> str:
        if not isinstance(choice, dict):
            raise ValueError("a choice that is not an object")
        if choice.get("index", 0) not in (0, None):
            return ""
        reason = choice.get("finish_reason")
        if reason is not None:
            if not isinstance(reason, str) or not reason:
                raise ValueError("a finish_reason that is not a word")
            self.finish = _FINISH.get(reason, "stop")
        if "text" in choice:
            return _text(choice["text"])
        delta = choice.get("delta")
        if delta is None:
            return ""
        if not isinstance(delta, dict):
            raise ValueError("a delta that is not an object")
        calls = delta.get("tool_calls")
        if not isinstance(calls, list | None):
            raise ValueError("tool calls that are not a list")
        for call in calls or ():
            self._take_call(call)
        return _text(delta.get("content")) + _text(delta.get("refusal"))

    def _take_call(self, part: object) -> None:
        if not isinstance(part, dict) or type(part.get("index", 0)) is not int:
            raise ValueError("a tool call that is not an object, or has no index")
        empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._calls.setdefault(part.get("index", 0), empty)
        function = part.get("function") or {}
        if not isinstance(function, dict):
            raise ValueError("a tool call without a function")
        call["id"] = _text(part.get("id")) or call["id"]
        call["function"]["name"] += _text(function.get("name"))
        call["function"]["arguments"] += _text(function.get("arguments"))

    def _take_usage(self, usage: object) -> None:
        if isinstance(usage, dict):
            self.prompt_tokens = _tokens(usage.get("prompt_tokens"), self.prompt_tokens)
            self.new_tokens = _tokens(usage.get("completion_tokens"), self.new_tokens)


def _text(value: object) -> str:
    """Return a text, or the joined text parts of a list of parts."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(_text(p.get("text")) for p in value if isinstance(p, dict) and p.get("type") == "text")
    if not isinstance(value, str):
        raise ValueError("text that is not a string")
    return value


def _tokens(value: object, before: int | None) -> int | None:
    """Return a plausible count, else ``before``: cost and budget depend on it."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else before
