"""Add passages to a request; private ones make the request private."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgekit.types.routing import Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.routing.documents.index import Passage
    from edgekit.types.routing import Request

INTRODUCTION = "Excerpts from the user's own documents, each under its file's name. Use them where they help."


def with_passages(request: Request, passages: Sequence[Passage]) -> Request:
    """Return the request with the passages before its last question.

    One private passage makes the request private: ``request.private`` then names the document, and the endpoints' part
    (``passthrough``) gets no passages. Token counts are reset, as the prompt has changed.

    Args:
        request: the request.
        passages: the result of ``Index.search``, best first.
    """
    if not passages:
        return request
    excerpts = _excerpts(passages)
    private = tuple(dict.fromkeys(_shown(p.path) for p in passages if p.private))
    passed = request.passthrough if private else _put_into_passthrough(request.passthrough, excerpts)
    return replace(
        request,
        messages=_put_into_messages(request.messages, excerpts),
        prompt=f"{excerpts}\n\n{request.prompt}" if request.prompt else "",
        tokens=(),
        counted=frozenset(),
        private="; ".join(reason for reason in (request.private, _reason(private)) if reason),
        passthrough=passed,
    )


def _reason(paths: tuple[str, ...]) -> str:
    if not paths:
        return ""
    if len(paths) == 1:
        return f"the document {paths[0]} is private"
    return f"the documents {', '.join(paths[:-1])} and {paths[-1]} are private"


def _excerpts(passages: Sequence[Passage]) -> str:
    return "\n\n".join([INTRODUCTION, *(f"[{_shown(p.path)}]\n{p.text}" for p in passages)])


def _shown(path: str) -> str:
    """Replace brackets and unprintable characters in a file's name."""
    return "".join(c if c.isprintable() and c not in "[]" else "_" for c in path)


def _put_into_messages(messages: tuple[Message, ...], excerpts: str) -> tuple[Message, ...]:
    """Put the excerpts before the text of the last user message, or into a new message if there is none."""
    for place in reversed(range(len(messages))):
        turn = messages[place]
        if turn.role == "user":
            changed = Message(turn.role, f"{excerpts}\n\n{turn.content}")
            return (*messages[:place], changed, *messages[place + 1 :])
    return (*messages, Message("user", excerpts)) if messages else ()


def _put_into_passthrough(passthrough: str, excerpts: str) -> str:
    """Put the excerpts into messages that are passed through unchanged, such as those with images."""
    try:
        body: Any = json.loads(passthrough) if passthrough else None
    except ValueError:
        return passthrough  # the endpoint refuses it later
    if not isinstance(body, dict):
        return passthrough
    if isinstance(body.get("prompt"), str):
        body["prompt"] = f"{excerpts}\n\n{body['prompt']}"
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if not isinstance(message, dict) or message.get("role") != "user":
            continue
        if isinstance(message.get("content"), str):
            message["content"] = f"{excerpts}\n\n{message['content']}"
        elif isinstance(message.get("content"), list):
            message["content"].insert(0, {"type": "text", "text": excerpts})
        break
    return json.dumps(body, ensure_ascii=False)
