"""Passages into a request, and private ones never into one that may leave."""

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
    """The request with the passages before its last question, for the device.

    One private passage makes the request private: ``request.private`` then says which document it was, and the
    endpoints' part (``passthrough``) is left without any. Token counts are gone: the prompt is another one.

    Args:
        request: as it was asked.
        passages: of ``Index.search``, best first.
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
    """A file's name on one line, whatever it is called."""
    return "".join(c if c.isprintable() and c not in "[]" else "_" for c in path)


def _put_into_messages(messages: tuple[Message, ...], excerpts: str) -> tuple[Message, ...]:
    """Before the text of the last message of the user's; as a message of its own where there is none."""
    for place in reversed(range(len(messages))):
        said = messages[place]
        if said.role == "user":
            changed = Message(said.role, f"{excerpts}\n\n{said.content}")
            return (*messages[:place], changed, *messages[place + 1 :])
    return (*messages, Message("user", excerpts)) if messages else ()


def _put_into_passthrough(passthrough: str, excerpts: str) -> str:
    """The same for the messages that are passed through as they came: parts of an image and its text."""
    try:
        body: Any = json.loads(passthrough) if passthrough else None
    except ValueError:
        return passthrough  # cloud/ refuses it in words of its own
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
