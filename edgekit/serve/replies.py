"""Build answers and chunks in OpenAI's format, with the verdict in ``edgekit`` and in a header."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from edgekit.types.routing import DEVICE

if TYPE_CHECKING:
    from edgekit.types.routing import Routed, Verdict

VERDICT_HEADER = "x-edgekit-verdict"
_LONGEST_REASON = 300
"""Most characters of a reason in a header, as clients and proxies limit its length."""

_FINISHES = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}
DONE = b"data: [DONE]\n\n"

Kind = Literal["chat", "text"]


def describe_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict for JSON: every check with its numbers."""
    return {
        "tier": verdict.tier,
        "code": verdict.code,
        "reason": verdict.reason,
        "degraded": verdict.degraded,
        "ladder": list(verdict.ladder),
        "expected": _numbers(asdict(verdict.expected)),
        "findings": [_numbers(asdict(finding)) for finding in verdict.findings],
    }


def _numbers(members: dict[str, Any]) -> dict[str, Any]:
    """Replace non-finite numbers by their names, as JSON does not have them."""
    return {
        name: str(value) if isinstance(value, float) and not isfinite(value) else value
        for name, value in members.items()
    }


def describe_routed(routed: Routed) -> dict[str, Any]:
    """Return the ``edgekit`` field of an answer: the final verdict, and the answer's time, energy and cost."""
    return describe_verdict(routed.verdict) | {
        "seconds": routed.seconds,
        "seconds_to_first": routed.seconds_to_first,
        "device_seconds": routed.device_seconds,
        "joules": routed.joules,
        "cost": routed.cost,
        "spared": routed.spared,
        "wrong": routed.wrong,
        "attempts": [asdict(attempt) for attempt in routed.attempts],
    }


def verdict_header(verdict: Verdict) -> dict[str, str]:
    """Return the header with a short form of the verdict, as ASCII JSON on one line."""
    reason = verdict.reason
    if len(reason) > _LONGEST_REASON:
        reason = reason[: _LONGEST_REASON - 3] + "..."
    short = {"tier": verdict.tier, "code": verdict.code, "degraded": verdict.degraded, "reason": reason}
    return {VERDICT_HEADER: json.dumps(short, separators=(",", ":"))}


@dataclass(frozen=True)
class Reply:
    """Formats one answer. ``models`` maps each tier to the name of its model, for the field ``model``."""

    kind: Kind
    models: dict[str, str]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, routed: Routed) -> dict[str, Any]:
        """Return the whole answer."""
        finish = _FINISHES.get(routed.finish, "stop")
        if self.kind == "chat":
            message = {"role": "assistant", "content": routed.text, "refusal": None}
            if routed.message:
                message |= json.loads(routed.message)
            choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        else:
            choice = {"index": 0, "text": routed.text, "logprobs": None, "finish_reason": finish}
        about = {"choices": [choice], "usage": usage(routed), "edgekit": describe_routed(routed)}
        return self._frame(routed.verdict.tier, streamed=False) | about

    def opening(self, tier: str) -> bytes:
        """Return the first chunk of a chat, with the role; nothing for text."""
        if self.kind == "text":
            return b""
        return self._event(tier, self._choice({"role": "assistant", "content": ""}))

    def piece(self, tier: str, text: str) -> bytes:
        """Return a chunk with more text."""
        return self._event(tier, self._choice({"content": text} if self.kind == "chat" else text))

    def ending(self, routed: Routed, *, with_usage: bool) -> bytes:
        """Return the last chunks: tool calls, finish reason and verdict, usage if requested, and ``[DONE]``."""
        tier = routed.verdict.tier
        events = []
        calls = json.loads(routed.message).get("tool_calls") if routed.message else None
        if calls and self.kind == "chat":
            delta = {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}
            events.append(self._event(tier, self._choice(delta)))
        finish = _FINISHES.get(routed.finish, "stop")
        choice = self._choice({} if self.kind == "chat" else "", finish)
        events.append(self._event(tier, choice, edgekit=describe_routed(routed)))
        if with_usage:
            events.append(self._event(tier, None, usage=usage(routed)))
        return b"".join(events) + DONE

    def _choice(self, content: dict[str, Any] | str, finish: str | None = None) -> dict[str, Any]:
        said = {"delta": content} if self.kind == "chat" else {"text": content}
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish}

    def _event(self, tier: str, choice: dict[str, Any] | None, **more: Any) -> bytes:
        return event(self._frame(tier, streamed=True) | {"choices": [choice] if choice else []} | more)

    def _frame(self, tier: str, *, streamed: bool) -> dict[str, Any]:
        if self.kind == "text":
            name, word = "cmpl", "text_completion"
        else:
            name, word = "chatcmpl", "chat.completion.chunk" if streamed else "chat.completion"
        model = self.models.get(tier, tier)
        return {"id": f"{name}-{self.id}", "object": word, "created": self.created, "model": model}


def usage(routed: Routed) -> dict[str, int]:
    """Return the token counts of the tier that answered."""
    prompt, new = routed.prompt_tokens, routed.new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def event(data: dict[str, Any]) -> bytes:
    """Format one server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def list_models(local: str, created: int, tiers: tuple[tuple[str, str, str], ...]) -> dict[str, Any]:
    """Return GET /v1/models: the alias, then the local model. ``tiers``: (name, trust, model) of the endpoints."""
    ladder = [{"name": DEVICE, "trust": "device", "model": local}]
    ladder += [{"name": name, "trust": trust, "model": model} for name, trust, model in tiers]
    return {
        "object": "list",
        "data": [
            {
                "id": "edgekit",
                "object": "model",
                "created": created,
                "owned_by": "edgekit",
                "edgekit": {"tiers": ladder},
            },
            {"id": local, "object": "model", "created": created, "owned_by": DEVICE},
        ],
    }
