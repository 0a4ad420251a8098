"""The nouns of routing: what is asked, who may answer, and why one did. Standard library only.

One rule: local when you can, cloud when you must. ``route`` decides and does nothing else; ``cloud`` calls; ``router``
joins them to a bundle. Times are seconds, prices and costs are in the policy's currency, probabilities 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from edgekit.types import Sampling
from edgekit.types.calibration import Signals
from edgekit.types.outgoing import Outgoing, compose

# --- what is asked ------------------------------------------------------------------------------

Trust = Literal["device", "private", "third-party"]
"""Who sees a prompt: nobody else; a machine of the user's own (an edge box, a private cloud); another company."""

TRUST: tuple[Trust, ...] = ("device", "private", "third-party")
"""From the most trusted on."""

Ability = Literal["tools", "images", "json-schema"]
"""What a request may need besides text in and text out."""

Override = Literal["local-only", "cloud-ok"]
"""Of one request: it must not leave the device; or it may, whatever the policy's ceiling is for those that say nothing.
A privacy rule, or a private document, stands above ``cloud-ok``."""

DEVICE = "device"
"""The name of the tier that is this machine."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as text. Parts that are not text are in ``Request.passthrough`` only."""

    role: str
    content: str


@dataclass(frozen=True)
class Unfit:
    """Why a model cannot be fed a request: ``check`` says which kind of reason, ``reason`` says it in words."""

    check: Literal["empty", "no-template", "template"]
    reason: str


@dataclass(frozen=True)
class Request:
    """What someone wants answered, whoever answers.

    ``messages`` of a conversation, or, where there are none, ``prompt``: a text to be continued as it is.
    ``tokens`` counts the prompt for each tier (``device`` among them) before anything is sent; a tier that is missing
    could not be counted. ``counted`` names the tiers whose count is exact; the others' are estimates, rounded up.
    ``needs`` is what the request needs besides text. ``schema``: a JSON schema, as JSON, that the answer must satisfy;
    "" where there is none, "{}" where any JSON will do. ``language``: ISO 639-1 code of the last message, None where
    it was not looked at or could not be told. ``private``: why the request must stay on the device, "" if it need not.
    ``passthrough``: a JSON object of the parts that only an endpoint understands (tools, images), "" for none.
    ``unfit``: why the device's model cannot be fed it, None where it can or where nobody has looked.
    ``fed``: the tokens that the device's model is fed, once they were counted; empty before, and where it takes none.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    tokens: tuple[tuple[str, int], ...] = ()
    counted: frozenset[str] = frozenset()
    needs: frozenset[Ability] = frozenset()
    schema: str = ""
    language: str | None = None
    override: Override | None = None
    private: str = ""
    passthrough: str = ""
    fed: tuple[int, ...] = ()
    unfit: Unfit | None = None

    @cached_property
    def outgoing(self) -> Outgoing:
        """What any endpoint would be sent of it."""
        return compose(self)

    @property
    def text(self) -> str:
        """All that was said, for rules that look for words."""
        return "\n".join(m.content for m in self.messages) or self.prompt

    def tokens_for(self, tier: str) -> int | None:
        """Tokens of the prompt as ``tier`` counts them, None where nobody could tell."""
        return dict(self.tokens).get(tier)


# --- the policy ---------------------------------------------------------------------------------

Fall = Literal["local", "cloud"]
"""Which way to go where a check cannot be made: stay, or leave."""

Show = Literal["checked", "prefix", "at-once"]
"""When a streamed local answer is shown: whole, after its checks; after the check of its first tokens, and from then on
it stands; or as it comes, and it always stands."""


@dataclass(frozen=True)
class Price:
    """What an endpoint charges, in the policy's currency."""

    input_per_million: float
    output_per_million: float
    per_request: float = 0.0

    def cost(self, prompt_tokens: int, new_tokens: int) -> float:
        """Of one request."""
        return (
            self.per_request
            + (self.input_per_million * prompt_tokens + self.output_per_million * new_tokens) / 1_000_000
        )


@dataclass(frozen=True)
class Tier:
    """One OpenAI-compatible endpoint, named by the user.

    ``key_env`` names an environment variable that holds its key, ``key_file`` a file that only its owner may read; at
    most one of them is set. ``context`` and ``max_output`` count tokens, None where the user does not know.
    ``tokenizer``: a tokenizer.json that counts as the endpoint does; "" counts with the bundle's and adds
    ``count_margin`` of it. ``languages``: ISO 639-1 codes it is good at, empty for all. ``seconds_to_first`` and
    ``tokens_per_second`` are what the user expects of it, None if nothing. ``deadline``: seconds that one request may
    take, retries included; ``stall``: seconds without a byte after which it counts as broken.
    """

    name: str
    trust: Trust
    url: str
    model: str
    key_env: str = ""
    key_file: str = ""
    context: int | None = None
    max_output: int | None = None
    tokenizer: str = ""
    count_margin: float = 0.3
    price: Price | None = None
    can: frozenset[Ability] = frozenset()
    languages: frozenset[str] = frozenset()
    seconds_to_first: float | None = None
    tokens_per_second: float | None = None
    deadline: float = 60.0
    stall: float = 20.0
    retries: int = 2


@dataclass(frozen=True)
class PrivacyRule:
    """Requests whose text matches the regular expression ``match`` (any case) go no further than ``ceiling``."""

    name: str
    match: str
    ceiling: Trust


@dataclass(frozen=True)
class Privacy:
    """``ceiling``: how far a request may go that says nothing itself. The strictest of all that apply holds."""

    ceiling: Trust = "third-party"
    rules: tuple[PrivacyRule, ...] = ()


@dataclass(frozen=True)
class OnDevice:
    """What the local model is used for.

    ``can``: besides text; ``json-schema`` means that its answer is tried and then checked. ``languages``: ISO 639-1
    codes it is good at, empty for all. ``max_output``: most tokens it writes.
    """

    can: frozenset[Ability] = frozenset()
    languages: frozenset[str] = frozenset()
    max_output: int | None = None


@dataclass(frozen=True)
class Bounds:
    """When work leaves the device though it could be done there. None: no limit, and then no check.

    ``seconds_to_first`` and ``seconds`` (whole answer) bound what is expected, waiting included.
    ``least_battery``: percent, below which it leaves unless a charger is connected; ``most_celsius``: of the processor.
    ``free_memory``: bytes that must stay free.
    """

    seconds_to_first: float | None = None
    seconds: float | None = None
    least_battery: float | None = None
    most_celsius: float | None = None
    free_memory: int = 0


@dataclass(frozen=True)
class Budget:
    """Money that may be spent, in ``currency``. None: no limit."""

    per_request: float | None = None
    per_day: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class Unknown:
    """Which way to fall where a check has no numbers."""

    latency: Fall = "local"
    battery: Fall = "local"
    thermal: Fall = "local"
    memory: Fall = "local"
    language: Fall = "local"
    quality: Fall = "local"


@dataclass(frozen=True)
class AnswerRules:
    """What a local answer must pass.

    ``most_wrong``: greatest calibrated probability of being wrong that is served, None for the calibration's own
    threshold. A guarantee holds only for its own: a greater number beside one is refused. ``prefix``: give up after the
    calibration's first tokens where the outcome is clear. ``cut_off``: an answer that its limit ended is passed on.
    ``repetition``: one that repeats itself is.
    """

    most_wrong: float | None = None
    prefix: bool = True
    cut_off: bool = True
    repetition: bool = True


@dataclass(frozen=True)
class Policy:
    """The rule in numbers. ``tiers`` from the cheapest on; the device comes before all of them.

    ``last_resort``: where the local answer failed its checks, or was never to be made, and nobody else may or can
    answer: ``answer`` gives the local one with ``degraded``, ``refuse`` gives an error.
    """

    name: str
    tiers: tuple[Tier, ...] = ()
    privacy: Privacy = Privacy()
    device: OnDevice = OnDevice()
    bounds: Bounds = Bounds()
    budget: Budget = Budget()
    unknown: Unknown = Unknown()
    answers: AnswerRules = AnswerRules()
    show: Show = "checked"
    last_resort: Literal["answer", "refuse"] = "answer"


# --- the moment ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceState:
    """The machine and its accounts at one moment. Unknown is None.

    ``waiting``: seconds until the model is free. ``memory_needed``: bytes that answering would take beyond what is
    held. ``unreachable``: tiers that are known to be down, with the reason. ``spent_today`` in the policy's currency.
    """

    context: int
    free_memory: int | None = None
    memory_needed: int | None = None
    battery_percent: float | None = None
    on_battery: bool | None = None
    celsius: float | None = None
    waiting: float = 0.0
    spent_today: float = 0.0
    unreachable: tuple[tuple[str, str], ...] = ()


# --- the verdict --------------------------------------------------------------------------------

CheckName = Literal[
    "empty", "no-template", "template",
    "privacy", "capability", "language", "context", "memory", "latency", "battery", "thermal", "money", "reachable",
    "ended", "repetition", "schema", "quality", "prefix",
]  # fmt: skip
"""Stable codes of what is looked at, in the order in which it is."""


@dataclass(frozen=True)
class Finding:
    """One check of one tier: what was found beside its limit. ``unknown`` says which way the policy fell in ``detail``.

    ``value`` and ``limit`` are None where there is no number.
    """

    check: CheckName
    tier: str
    outcome: Literal["pass", "fail", "unknown"]
    detail: str
    value: float | None = None
    limit: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class Expected:
    """What answering is expected to take, None where nobody knows. ``joules`` are this device's, gross.

    ``energy`` says how the joules' power was obtained. ``most_new``: the most tokens of the answer that whoever answers
    is told, None where they may write as many as they do.
    """

    seconds_to_first: float | None = None
    seconds: float | None = None
    joules: float | None = None
    cost: float | None = None
    energy: Literal["measured", "estimated", "none"] = "none"
    most_new: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Who answers, and why.

    ``tier`` is DEVICE, a tier's name, or "" where nobody may. ``code`` is the check that decided (``local`` where none
    stood against the device). ``reason`` says it in words. ``ladder`` are the tiers that may be gone on with, cheapest
    first, ``tier`` itself left out. ``degraded``: the local answer failed a check and is given because nobody else may.
    """

    tier: str
    code: str
    reason: str
    findings: tuple[Finding, ...]
    expected: Expected = Expected()
    ladder: tuple[str, ...] = ()
    degraded: bool = False


# --- an answer ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """One tier that was asked. ``outcome`` in words: ``served``, ``gave up after 16 tokens``, ``timed out``."""

    tier: str
    outcome: str
    seconds: float
    cost: float = 0.0


@dataclass(frozen=True)
class Opening:
    """The first event of an answer: who gives the text that follows. Text of two tiers never follows one another."""

    verdict: Verdict


@dataclass(frozen=True)
class Piece:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class Routed:
    """The last event: the whole answer, with the verdict as it came out in the end.

    ``verdict.tier`` is "" where nobody answered; ``text`` is "" then. ``broken``: an endpoint broke off after text had
    been shown, and nothing may follow it. ``finish``: ``stop``, ``length``, ``tool_calls``, ``cancelled``, ``error``.
    ``device_seconds``: the model's time, whether its answer was used or not. ``message``: the endpoint's message as a
    JSON object where it holds more than text, else "". ``cost`` of all attempts; ``spared``: what the cheapest tier
    allowed would have cost, where the device answered in its stead, None without a price.
    """

    verdict: Verdict
    text: str
    finish: str
    prompt_tokens: int
    new_tokens: int
    seconds: float
    seconds_to_first: float | None
    device_seconds: float
    joules: float | None
    cost: float
    spared: float | None
    attempts: tuple[Attempt, ...]
    signals: Signals | None = None
    wrong: float | None = None
    message: str = ""
    broken: bool = False


Event = Opening | Piece | Routed
"""What ``Router.answer`` yields: one Opening, Pieces, one Routed; or a Routed alone where nobody answers."""


# --- examples and answers -----------------------------------------------------------------------

Grading = Literal["exact", "prefix", "contains", "number", "choice"]
"""How an answer is compared with the reference: see decision/grading.py."""


@dataclass(frozen=True)
class Example:
    """A question whose answer is known: one line of a data file. ``answers``: any of them is right.

    ``choices``: for the grading ``choice``, what might be answered, the wrong ones among them.
    """

    id: str
    request: Request
    answers: tuple[str, ...]
    grading: Grading
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalAnswer:
    """What the bundle made of an example.

    ``prefix``: the signals of the first tokens, where it had more than these. ``seconds_to_first`` and ``seconds`` are
    measured; ``prefix_seconds`` until the prefix was complete.
    """

    id: str
    text: str
    finish: str
    right: bool
    signals: Signals
    prefix: Signals | None
    prompt_tokens: int
    seconds_to_first: float
    seconds: float
    prefix_seconds: float | None


@dataclass(frozen=True)
class CloudAnswer:
    """What an endpoint, or an answers file, made of it. ``seconds`` and ``cost`` are None where they are not known."""

    id: str
    text: str
    right: bool
    prompt_tokens: int | None
    new_tokens: int | None
    seconds: float | None
    cost: float | None
