"""What leaves against a veto: every field that an endpoint is sent, in every disguise that a check can see through.

Each case is an OpenAI request as a client would post it. It is read as the server reads it, and answered by a router
whose device cannot answer, so that whatever may leave does; a server on loopback keeps what arrives. The veto is a
private document that is quoted, or a privacy rule of the policy. The same requests with harmless text must leave.

    python -m benchmarks.strangers.privacy
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from edgekit import build_bundle
from edgekit.routing.router import open_router
from edgekit.serve.api_errors import Refusal
from edgekit.serve.protocol import Chat, Completion
from edgekit.testing import serve_fake_openai, tiny_checkpoint
from edgekit.types.routing import Bounds, Policy, Privacy, PrivacyRule, Tier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgekit.routing.router import Router
    from edgekit.testing import FakeEndpoint

SECRETS = {
    "quote": "The notary keeps our second key behind the blue clock in Verona until the spring",
    "rule": "the codename is project heliotrope",
}
HARMLESS = "The train to Rome leaves at nine and a ticket costs forty euros in the summer"
RULES = (
    PrivacyRule("project", r"\bproject heliotrope\b", "device"),
    PrivacyRule("card", r"(?:\d[ -]?){13,16}", "device"),
)
CARD = "4111 1111 1111 1111"

_ZERO_WIDTH = "\u200b\u200d\u2060\ufeff\u00ad"
_CYRILLIC = str.maketrans("aceopxyi", "асеорхуі")


def _each(text: str, change: Callable[[int, str], str]) -> str:
    return "".join(change(place, letter) for place, letter in enumerate(text))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


DISGUISES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "capitals": str.upper,
    "other spaces": lambda t: t.replace(" ", "\u00a0\u2009"),
    "lines": lambda t: t.replace(" ", "\r\n\t"),
    "punctuation and marks around": lambda t: f"**“{t}”**!",
    "zero width": lambda t: _each(t, lambda i, c: c + _ZERO_WIDTH[i % 5]),
    "right to left marks": lambda t: f"\u202e{t[:12]}\u202c{t[12:]}",
    "full width": lambda t: _each(t, lambda _i, c: chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c),
    "mathematical letters": lambda t: _each(t, lambda _i, c: chr(0x1D41A + ord(c) - 97) if "a" <= c <= "z" else c),
    "Cyrillic letters": lambda t: t.translate(_CYRILLIC),
    "accents": lambda t: _each(t, lambda i, c: c + "\u0301" if c.isalpha() and i % 3 == 0 else c),
    "percent signs": lambda t: _each(t, lambda _i, c: f"%{ord(c):02X}"),
    "a query": lambda t: f"https://example.com/?q={quote_plus(t)}&x=1",
    "percent signs twice": lambda t: quote(quote(t)),
    "HTML": lambda t: _each(t, lambda i, c: f"&#{ord(c)};" if i % 2 else f"&#x{ord(c):x};"),
    "backslashes": lambda t: _each(t, lambda _i, c: f"\\u{ord(c):04x}"),
    "JSON in a string": lambda t: json.dumps({"a": [json.dumps({"b": t})]}),
    "base64": _base64,
    "base64 for URLs": lambda t: base64.urlsafe_b64encode(t.encode()).decode().rstrip("="),
    "base64 in lines": lambda t: base64.encodebytes(t.encode()).decode(),
    "base64 twice": lambda t: _base64(_base64(t)),
    "hexadecimal": lambda t: t.encode().hex(),
    "a data URL": lambda t: f"data:text/plain;base64,{_base64(t)}",
    "a data URL with a lie": lambda t: f"data:image/png;base64,{_base64(t)}",
    "a data URL in percents": lambda t: f"data:,{quote(t)}",
    "a string that begins with data:": lambda t: f"data: {t}",
    "a picture's comment": lambda t: (
        "data:image/png;base64,"
        + base64.b64encode(b"\x89PNG\r\n\x1a\n\x00\xff tEXtComment\0" + t.encode() + bytes(range(128, 256))).decode()
    ),
    "UTF-16 in base64": lambda t: base64.b64encode(t.encode("utf-16")).decode(),
    "hyphens at ends of lines": lambda t: t.replace("otr", "o-\n  tr").replace("otary", "o-\ntary"),
}


def _user(*content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": c} for c in content], **more}


def _tool(**function: Any) -> dict[str, Any]:
    return _user("Hello", tools=[{"type": "function", "function": {"name": "look", **function}}])


def _parameters(**schema: Any) -> dict[str, Any]:
    return _tool(parameters={"type": "object", **schema})


def _called(**call: Any) -> dict[str, Any]:
    function = {"name": call.pop("name", "look"), "arguments": call.pop("arguments", "{}")}
    said = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": function, **call}]}
    return {
        "messages": [{"role": "user", "content": "Hello"}, said, {"role": "tool", "tool_call_id": "c1", "content": "1"}]
    }


def _turn(role: str, content: Any = "Hello", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more}, {"role": "user", "content": "And?"}]}


def _form(schema: dict[str, Any], **named: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "it", **named, "schema": schema}}
    return _user("Hello", response_format=form)


def _halves(text: str) -> list[str]:
    return text.split("\0")


FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "a user's message": _user,
    "the system's message": lambda t: _turn("system", t),
    "the developer's message": lambda t: _turn("developer", t),
    "an assistant's message": lambda t: _turn("assistant", t),
    "a message before the last": lambda t: _user(t, "Hello"),
    "a participant's name": lambda t: _turn(
        "user",
        [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}],
        name=t,
    ),
    "a text part": lambda t: _user([{"type": "text", "text": t}]),
    "a refusal": lambda t: _turn("assistant", None, refusal=t),
    "a refusal part": lambda t: _turn("assistant", [{"type": "refusal", "refusal": t}]),
    "a picture's URL": lambda t: _user(
        [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": t}}]
    ),
    "a picture's other keys": lambda t: _user([{"type": "image_url", "image_url": {"url": "https://e.com/x", t: t}}]),
    "a tool's result": lambda t: {
        "messages": [*_called()["messages"][:2], {"role": "tool", "tool_call_id": "c1", "content": t}]
    },
    "a tool's result's id": lambda t: {
        "messages": [*_called()["messages"][:2], {"role": "tool", "tool_call_id": t, "content": "1"}]
    },
    "a call's arguments": lambda t: _called(arguments=t),
    "a call's arguments in JSON": lambda t: _called(arguments=json.dumps({"q": t})),
    "a call's function": lambda t: _called(name=t),
    "a call's id": lambda t: _called(id=t),
    "a call's other keys": lambda t: _called(extra={t: 1}),
    "a tool's name": lambda t: _tool(name=t),
    "a tool's description": lambda t: _tool(description=t),
    "a tool's other keys": lambda t: _tool(**{"x-note": {t: None}}),
    "a parameter's name": lambda t: _parameters(properties={t: {"type": "string"}}),
    "a parameter's description": lambda t: _parameters(properties={"q": {"type": "string", "description": t}}),
    "a parameter's enum": lambda t: _parameters(properties={"q": {"enum": ["a", t]}}),
    "a parameter's default": lambda t: _parameters(properties={"q": {"default": {"x": [t]}}}),
    "a parameter's title": lambda t: _parameters(title=t),
    "a parameter's constant": lambda t: _parameters(properties={"q": {"const": t}}),
    "a parameter's examples": lambda t: _parameters(examples=[[[t]]]),
    "required parameters": lambda t: _parameters(required=[t]),
    "the choice of a tool": lambda t: {**_tool(), "tool_choice": {"type": "function", "function": {"name": t}}},
    "the choice of a tool in a word": lambda t: {**_tool(), "tool_choice": t},
    "a schema's name": lambda t: _form({}, name=t),
    "a schema's description": lambda t: _form({}, description=t),
    "a schema's title": lambda t: _form({"title": t}),
    "a schema's property": lambda t: _form({"properties": {t: {}}}),
    "a schema's enum": lambda t: _form({"enum": [t]}),
    "a schema's comment": lambda t: _form({"$comment": t}),
    "a schema's definition": lambda t: _form({"$defs": {"a": {"description": t}}}),
    "a stop string": lambda t: _user("Hello", stop=t),
    "a list of stop strings": lambda t: _user("Hello", stop=["x", t]),
    "two parts": lambda t: _user([{"type": "text", "text": part} for part in _halves(t)]),
    "two messages": lambda t: _user(*_halves(t)),
    "two messages with an answer between": lambda t: {
        "messages": [
            {"role": "user", "content": _halves(t)[0]},
            {"role": "assistant", "content": "Go on."},
            {"role": "user", "content": _halves(t)[1]},
        ]
    },
    "two parts with a picture between": lambda t: _user(
        [
            {"type": "text", "text": _halves(t)[0]},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
            {"type": "text", "text": _halves(t)[1]},
        ]
    ),
    "the user's id": lambda t: _user("Hello", user=t),
    "metadata": lambda t: _user("Hello", metadata={"note": t}),
    "a cache's key": lambda t: _user("Hello", prompt_cache_key=t, safety_identifier=t),
    "a text to continue": lambda t: {"prompt": t},
    "a text's stop string": lambda t: {"prompt": "Once", "stop": [t]},
}

_DROPPED = frozenset({"the user's id", "metadata", "a cache's key"})
"""Fields that no endpoint is sent: the request may leave, they may not."""

_CUT = frozenset(name for name in FIELDS if name.startswith("two "))
_WHOLE_ONLY = frozenset(
    (
        *("base64", "base64 for URLs", "base64 in lines", "base64 twice", "hexadecimal", "UTF-16 in base64"),
        *(
            "a picture's comment",
            "a data URL",
            "a data URL with a lie",
            "a data URL in percents",
            "percent signs twice",
        ),
        *("JSON in a string", "punctuation and marks around", "a query", "a string that begins with data:"),
    )
)
"""What stands between two halves that are written so: a receiver would have to decode each, or drop other words."""


@dataclass(frozen=True)
class Case:
    """One request that must not leave, or must. ``body`` as a client posts it, without its model."""

    name: str
    field: str
    placed: str
    body: dict[str, Any]


def cases(secrets: dict[str, str] = SECRETS) -> Iterator[Case]:
    """Fields x disguises x vetoes, and numbers."""
    for veto, secret in secrets.items():
        for disguise, change in DISGUISES.items():
            for field, put in FIELDS.items():
                if not (field in _CUT and disguise in _WHOLE_ONLY):
                    half = len(secret) // 2  # in the middle of a word
                    placed = f"{change(secret[:half])}\0{change(secret[half:])}" if field in _CUT else change(secret)
                    yield Case(f"{veto}, {disguise}, {field}", field, placed, put(placed))
    card = int(CARD.replace(" ", ""))
    if secrets is SECRETS:
        numbers = {
            "a seed": _user("Hello", seed=card, temperature=0.5),
            "a parameter's number": _parameters(properties={"q": {"const": card}}),
            "a call's number": _called(arguments=json.dumps({"q": card})),
            "a call's extra number": _called(extra=card),
            "most tokens": _user("Hello", max_tokens=card),
            "a card in a tool": _tool(description=CARD),
            "a card with dashes": _user(CARD.replace(" ", "\u2013")),
            "a card in Arabic digits": _user(CARD.translate({48 + i: 0x660 + i for i in range(10)})),
            "a card in two messages": _user("It is 4111 1111", "1111 1111"),
        }
        yield from (Case(f"rule, {name}", name, CARD, body) for name, body in numbers.items())


@contextmanager
def opened() -> Iterator[tuple[Router, FakeEndpoint]]:
    """A router whose device has no memory to answer, and the endpoint that everything goes to that may."""
    with tempfile.TemporaryDirectory() as place, serve_fake_openai("From far.") as far:
        folder = Path(place)
        (folder / "documents" / "private").mkdir(parents=True)
        (folder / "documents" / "private" / "diary.md").write_text(f"Dear diary. {SECRETS['quote']}. Nobody knows.\n")
        (folder / "documents" / "garden.md").write_text("Tomatoes are planted in May.\n")
        bundle = build_bundle(tiny_checkpoint(folder / "model"), precision="int8", out=folder / "bundle")
        able = frozenset({"tools", "images", "json-schema"})
        tier = Tier("far", "third-party", far.url, "far", can=able)
        policy = Policy("far", (tier,), Privacy(rules=RULES), bounds=Bounds(free_memory=2**60), last_resort="refuse")
        with open_router(bundle, policy, environment={}, documents=folder / "documents") as router:
            yield router, far


def ask(router: Router, far: FakeEndpoint, case: Case) -> list[dict[str, Any]] | None:
    """What arrived of a case; None where the server does not take it at all: its limits come first."""
    form = Completion if "prompt" in case.body else Chat
    del far.bodies[:]
    try:
        asked = form.read(json.dumps({"model": "edgekit", "max_tokens": 4, **case.body}).encode())
        request = asked.request(header=None, local_model="local")
    except Refusal:
        return None
    for _ in router.answer(request):
        pass
    return list(far.bodies)


def leaks(case: Case, arrived: list[dict[str, Any]] | None) -> bool:
    """Whether something arrived that must not: anything, or, of a field that is dropped, its text."""
    if case.field in _DROPPED:
        return any(case.placed in text for body in arrived or () for text in _texts(body))
    return bool(arrived)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(item)


def run() -> tuple[list[str], list[str], int]:
    """The cases that leaked, the harmless requests that were kept back, and how many cases there were."""
    with opened() as (router, far):
        every = list(cases())
        leaked = [case.name for case in every if leaks(case, ask(router, far, case))]
        # A disguise by itself is nothing: the very same with other words leaves.
        harmless = [
            c for c in cases({"harmless": HARMLESS}) if "hexadecimal" not in c.name
        ]  # digits are a card's number
        kept = [case.name for case in harmless if ask(router, far, case) == []]
    return leaked, kept, len(every)


def count() -> tuple[int, int]:
    """How many of how many cases left against a veto."""
    leaked, _, every = run()
    return len(leaked), every


def main() -> bool:
    """Print it; False where something left, or harmless requests were kept back."""
    leaked, kept, every = run()
    print(f"privacy: {len(leaked)} of {every} left against a veto; {len(kept)} harmless requests were kept back")
    for name in (*leaked[:50], *kept[:50]):
        print(f"  {name}")
    return not leaked and not kept


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
