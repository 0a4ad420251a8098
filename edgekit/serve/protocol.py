"""Parse OpenAI's chat and text completions strictly into a routing.Request.

A field that would change the answer and is not supported is refused, never ignored; so is an unknown one. What a
request omits, or gives as null, stays unset: see ``Sampling``.

Everything is limited before it is parsed: the number of values in a body, the items of each kind, the length of names.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from edgekit.errors import did_you_mean
from edgekit.serve.api_errors import Refusal, bad_request
from edgekit.types import Sampling
from edgekit.types.routing import Ability, Message, Override, Request

ALIAS = "edgekit"
"""The model name for which the policy decides who answers."""

MOST_STOPS = 16
MOST_MESSAGES = 2048
MOST_PARTS = 256
MOST_TOOLS = 128
"""OpenAI's limit."""

MOST_VALUES = 20_000
"""Most numbers, texts, lists and objects in a body, as each takes microseconds."""

MOST_MEMBERS = 1000
"""Most members of one object."""

_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

Name = Annotated[str, Field(max_length=64)]
"""Name of a participant or a schema, with OpenAI's limit."""

Mark = Annotated[str, Field(max_length=1024)]
"""An identifier chosen by the client."""

Stop = Annotated[str, Field(max_length=256)]
OVERRIDE_HEADER = "x-edgekit-override"

_OF_AN_ANSWER = ("annotations", "parsed", "reasoning", "reasoning_content")
"""Fields of an answer that clients keep in an assistant's message when they send it back."""

_OVERRIDES: tuple[Override, ...] = ("local-only", "cloud-ok")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Strict):
    """A text part of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(_Strict):
    """An earlier answer that was a refusal."""

    type: Literal["refusal"]
    refusal: str


class ImagePart(_Strict):
    """An image, which is passed on unchanged."""

    type: Literal["image_url"]
    image_url: dict[str, Any]


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=MOST_PARTS)] | None = None
    name: Name | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = None
    tool_call_id: Mark | None = None
    refusal: str | None = None

    @property
    def text(self) -> str:
        """The text, with parts joined by line breaks."""
        if isinstance(self.content, list):
            parts = (p.text if isinstance(p, TextPart) else getattr(p, "refusal", "") for p in self.content)
            return "\n".join(part for part in parts if part)
        return self.content or self.refusal or ""

    @property
    def needs(self) -> frozenset[Ability]:
        """The abilities besides text that this message needs."""
        images = isinstance(self.content, list) and any(isinstance(p, ImagePart) for p in self.content)
        tools = bool(self.tool_calls) or self.role == "tool"
        return frozenset((*(("images",) if images else ()), *(("tools",) if tools else ())))


class Options(_Strict):
    """The router's options, ``edgekit`` in the body. ``private``: the request must stay on the device."""

    override: Override | None = None
    private: bool = False


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Strict):
    """A named schema."""

    name: Name = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    """Text, any JSON, or JSON that satisfies a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Asked(_Strict):
    """The fields of both kinds of request."""

    model: Mark
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    stop: Stop | list[Stop] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: Mark | None = None
    metadata: dict[Name, Mark] | None = Field(None, max_length=16)
    store: bool | None = None
    service_tier: Mark | None = None
    safety_identifier: Mark | None = None
    prompt_cache_key: Mark | None = None
    edgekit: Options = Options()

    @classmethod
    def read(cls, body: bytes) -> Self:
        """Parse a request's body.

        Raises:
            Refusal: the body is not JSON in UTF-8, exceeds a limit, or has an unknown field or unsupported value.
        """
        data = _parse(body)
        if not isinstance(data, dict):
            raise bad_request("the body must be a JSON object")
        _check_stops(data.get("stop"))
        _check_tokens(data.get("prompt"))
        kept = _drop_unset(data)
        try:
            asked = cls.model_validate(kept)
        except ValidationError as error:
            raise _of_validation(error, kept, tuple(cls.model_fields)) from None
        asked._refuse_unserved()
        return asked

    def _refuse_unserved(self) -> None:
        """Raise if a value is valid but not supported."""
        if self.n not in (None, 1):
            raise bad_request("n must be 1: only one answer per request", "n", "unsupported_value")
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(self, name):
                raise bad_request(f"{name} is not supported: remove it or set it to 0", name, "unsupported_parameter")
        if self.logit_bias:
            raise bad_request("logit_bias is not supported", "logit_bias", "unsupported_parameter")

    @property
    def streamed(self) -> bool:
        """Whether the answer is to be streamed."""
        return bool(self.stream)

    @property
    def with_usage(self) -> bool:
        """Whether the stream ends with a chunk with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, max_new_tokens: int | None) -> Sampling:
        """Return the sampling parameters that the request sets."""
        return Sampling(
            temperature=self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=None if self.seed is None else self.seed % 2**63,
            max_new_tokens=max_new_tokens,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        )

    def override(self, header: str | None, local_model: str) -> Override | None:
        """Return the strictest override of the body, the header and the model's name.

        Raises:
            Refusal: the header's value is unknown.
        """
        overrides: set[Override | None] = {self.edgekit.override}
        if header is not None:
            overrides.add(_known_override(header))
        if self.model == local_model:
            overrides.add("local-only")
        return next((word for word in _OVERRIDES if word in overrides), None)


class Chat(Asked):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    modalities: Annotated[list[Mark], Field(fail_fast=True, max_length=8)] | None = None

    def _refuse_unserved(self) -> None:
        super()._refuse_unserved()
        if self.logprobs or self.top_logprobs:
            raise bad_request("logprobs are not supported", "logprobs", "unsupported_parameter")
        if self.modalities not in (None, ["text"]):
            raise bad_request("only text is answered", "modalities", "unsupported_value")
        for at, message in enumerate(self.messages):
            if message.role != "assistant" and not message.content and message.content != "":
                said = f"the {message.role}'s message has no content: give a text or a list of parts"
                raise bad_request(said, f"messages.{at}.content", "missing_content")
        form = self.response_format
        if form and form.type == "json_schema" and form.json_schema is None:
            said = "response_format.json_schema is missing"
            raise bad_request(said, "response_format.json_schema", "missing_schema")

    def request(self, *, header: str | None, local_model: str) -> Request:
        """Convert to the router's request.

        Args:
            header: the value of ``x-edgekit-override``, if any.
            local_model: the listed id of the device's model; a request for it stays on the device.
        """
        needs = frozenset[Ability]().union(*(m.needs for m in self.messages))
        if self.tools and self.tool_choice != "none":
            needs |= {"tools"}
        schema = self._schema()
        if schema:
            needs |= {"json-schema"}
        return Request(
            messages=tuple(Message(_ROLES.get(m.role, m.role), m.text) for m in self.messages),
            sampling=self.sampling(self.max_completion_tokens or self.max_tokens),
            needs=needs,
            schema=schema,
            override=self.override(header, local_model),
            private="the request is private" if self.edgekit.private else "",
            passthrough=self._passthrough(needs),
        )

    def _schema(self) -> str:
        form = self.response_format
        if form is None or form.type == "text":
            return ""
        return json.dumps(form.json_schema.schema_) if form.json_schema else "{}"

    def _passthrough(self, needs: frozenset[Ability]) -> str:
        """Return the client's own fields that replace ours in a request to an endpoint."""
        fields: dict[str, Any] = {}
        if any(m.needs for m in self.messages):
            fields["messages"] = [m.model_dump(exclude_unset=True) for m in self.messages]
        if "tools" in needs:
            about = {name: getattr(self, name) for name in ("tools", "tool_choice", "parallel_tool_calls")}
            fields |= _without_nulls(about)
        if "json-schema" in needs and self.response_format:
            fields["response_format"] = self.response_format.model_dump(exclude_unset=True, by_alias=True)
        return json.dumps(fields, ensure_ascii=False) if fields else ""


class Completion(Asked):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(fail_fast=True)]
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None

    def _refuse_unserved(self) -> None:
        super()._refuse_unserved()
        if isinstance(self.prompt, list) and len(self.prompt) != 1:
            raise bad_request("prompt must be one text: only one answer per request", "prompt", "unsupported_value")
        if not self.text:
            raise bad_request("the prompt is empty: there is nothing to continue", "prompt", "empty_prompt")
        if self.best_of not in (None, 1):
            raise bad_request("best_of must be 1", "best_of", "unsupported_value")
        for name in ("echo", "suffix", "logprobs"):
            if getattr(self, name):
                raise bad_request(f"{name} is not supported", name, "unsupported_parameter")

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def request(self, *, header: str | None, local_model: str) -> Request:
        """Convert to the router's request. Args: as ``Chat.request``."""
        return Request(
            prompt=self.text,
            sampling=self.sampling(self.max_tokens),
            override=self.override(header, local_model),
            private="the request is private" if self.edgekit.private else "",
        )


_ROLES = {"developer": "system"}
"""Newer names for roles that chat templates know."""


def _parse(body: bytes) -> Any:
    """Parse JSON that all parsers read alike: unique names in each object, no NaN, no number beyond a float's range.

    Raises:
        Refusal: the body is anything else, or has too many values.
    """
    if body.count(b",") > MOST_VALUES and _TEXT.sub(b"", body).count(b",") > MOST_VALUES:
        raise bad_request(f"the body holds more than {MOST_VALUES:,} values", code="too_many_values")
    try:
        text = body.decode("utf-8")
        # Unlike json.loads it refuses unpaired surrogates, which no tokenizer accepts, and too deep nesting.
        from_json(text, allow_inf_nan=False)
        return json.loads(text, object_pairs_hook=_unique, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: byte {error.start}", code="invalid_utf8") from None
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from None


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(members) > MOST_MEMBERS:
        raise bad_request(f"an object holds more than {MOST_MEMBERS:,} members", code="too_many_values")
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("duplicate name in an object")
    return found


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError("a number exceeds the range of floats")
    return value


def _known_override(word: str) -> Override:
    for known in _OVERRIDES:
        if word.strip().lower() == known:
            return known
    raise bad_request(f"{OVERRIDE_HEADER} must be one of {', '.join(_OVERRIDES)}", OVERRIDE_HEADER)


def _check_stops(stop: object) -> None:
    # Before pydantic checks each one, so that ten thousand give one short error.
    if isinstance(stop, list) and len(stop) > MOST_STOPS:
        raise bad_request(f"stop holds {len(stop)} strings, at most {MOST_STOPS} are allowed", "stop", "too_many_stops")
    if stop == "" or (isinstance(stop, list) and "" in stop):
        raise bad_request("stop holds an empty string", "stop", "empty_stop")


def _check_tokens(prompt: object) -> None:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int | list):
        problem = "a prompt of token ids is not supported, as every tier has its own tokenizer: give the text"
        raise bad_request(problem, "prompt", "unsupported_value")


def _drop_unset(data: dict[str, Any]) -> dict[str, Any]:
    """Drop nulls, and the fields of an answer (``_OF_AN_ANSWER``) in an assistant's message."""
    kept = _without_nulls(data, keep=("model", "prompt", "messages"))
    for name in ("edgekit", "stream_options", "response_format"):
        if isinstance(kept.get(name), dict):
            kept[name] = _without_nulls(kept[name])
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_message(m) if isinstance(m, dict) else m for m in kept["messages"][: MOST_MESSAGES + 1]]
    return kept


def _message(message: dict[str, Any]) -> dict[str, Any]:
    # Endpoints require content, even null, in an assistant's message with tool calls.
    kept = _without_nulls(message, keep=("role", "content"))
    if kept.get("role") == "assistant":
        kept = {name: value for name, value in kept.items() if name not in _OF_AN_ANSWER}
    if isinstance(kept.get("content"), list):
        parts = kept["content"][: MOST_PARTS + 1]
        kept["content"] = [_without_nulls(part) if isinstance(part, dict) else part for part in parts]
    return kept


def _without_nulls(members: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None or name in keep}


def _of_validation(error: ValidationError, body: dict[str, Any], known: tuple[str, ...]) -> Refusal:
    """Turn pydantic's first error into OpenAI's format, without values, which may contain the prompt."""
    found = error.errors(include_url=False, include_input=False)
    places = [_place(e["loc"], body) for e in found]
    # A union has an error for each of its types: report the one that got furthest.
    alike = [i for i, place in enumerate(places) if place[: len(places[0])] == places[0]]
    at = max(alike, key=lambda i: len(places[i]))
    first, place = found[at], places[at]
    param, name = ".".join(place), place[-1] if place else ""
    match first["type"]:
        case "extra_forbidden":
            near = did_you_mean(name, known) if len(place) == 1 else ""
            return bad_request(f"unknown parameter: {param!r}. {near}".strip(), param, "unknown_parameter")
        case "missing":
            return bad_request(f"missing required parameter: {param!r}", param, "missing_required_parameter")
        case "union_tag_invalid":
            kinds = first["ctx"]["expected_tags"]
            given = str(first["ctx"]["tag"])[:64]
            problem = f"the type {given!r} of {param!r} is not supported: use {kinds}"
            return bad_request(problem, f"{param}.type", "unsupported_value")
        case "union_tag_not_found":
            param = f"{param}.type"
            return bad_request(f"missing required parameter: {param!r}", param, "missing_required_parameter")
    return bad_request(f"invalid value for {param!r}: {first['msg']}", param, "invalid_value")


def _place(steps: tuple[int | str, ...], body: Any) -> tuple[str, ...]:
    """Return the steps of an error's location that are in the body; the others are pydantic's names of types."""
    place: list[str] = []
    for left, step in zip(reversed(range(len(steps))), steps, strict=True):
        if isinstance(body, dict):
            # The tag of a part's type may also be the name of one of its members.
            if left and (step not in body or step == body.get("type")):
                continue
            body = body.get(step)
        elif isinstance(body, list) and isinstance(step, int) and step < len(body):
            body = body[step]
        else:
            continue
        place.append(str(step)[:64])
    return tuple(place)
