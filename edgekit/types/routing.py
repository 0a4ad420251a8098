"""Types for routing: requests, policies, verdicts and answers. Standard library only.

The rule is: local when you can, cloud when you must. ``route`` only decides, ``cloud`` calls endpoints, ``router``
connects both to a bundle. Times are in seconds, prices and costs in the policy's currency, probabilities from 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from edgekit.types import Sampling
from edgekit.types.calibration import Signals
from edgekit.types.outgoing import Outgoing, compose

# --- request ------------------------------------------------------------------------------------

Trust = Literal["device", "private", "third-party"]
"""Who sees a prompt: only the device; another machine of the user (edge box, private cloud); another company."""

TRUST: tuple[Trust, ...] = ("device", "private", "third-party")
"""Trust levels, the most trusted first."""

Ability = Literal["tools", "images", "json-schema"]
"""Features that a request may need besides plain text."""

Override = Literal["local-only", "cloud-ok"]
"""A request's override: it must not leave the device, or it may despite the policy's default ceiling. Privacy rules and
private documents take precedence over ``cloud-ok``."""

DEVICE = "device"
"""The tier name of this machine."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as text. Other content is only in ``Request.passthrough``."""

    role: str
    content: str


UnfitCheck = Literal["empty", "no-template", "template"]


@dataclass(frozen=True)
class Unfit:
    """Why a request cannot run on a model: the kind of reason in ``check``, an explanation in ``reason``."""

    check: UnfitCheck
    reason: str


@dataclass(frozen=True)
class Request:
    """A request, independent of who answers it.

    ``messages`` of a conversation, or, if empty, ``prompt``: raw text to continue. ``tokens`` counts the prompt for
    each tier (including ``device``) before anything is sent; a missing tier could not be counted. ``counted`` names the
    tiers whose count is exact; other counts are estimates, rounded up. ``needs`` are features besides text. ``schema``:
    a JSON schema, as JSON, for the answer; "" for none, "{}" for any JSON. ``language``: ISO 639-1 code of the last
    message, None if unknown. ``private``: why the request must stay on the device, "" if it may leave.
    ``passthrough``: a JSON object of the parts that only endpoints understand (tools, images), "" for none. ``unfit``:
    why it cannot run on the device's model, None if it can or was not checked. ``fed``: the tokens for the device's
    model, empty until they are counted, or if it cannot run there.
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
        """The content that would be sent to an endpoint."""
        return compose(self)

    @property
    def text(self) -> str:
        """All text of the request, for rules that match words."""
        return "\n".join(m.content for m in self.messages) or self.prompt

    def tokens_for(self, tier: str) -> int | None:
        """Tokens of the prompt as counted by ``tier``, None if unknown."""
        return dict(self.tokens).get(tier)


# --- policy -------------------------------------------------------------------------------------

Fall = Literal["local", "cloud"]
"""Where to answer if a check cannot be made."""

Show = Literal["checked", "prefix", "at-once"]
"""When a streamed local answer is shown: complete, after all checks; from the check of its first tokens on, after which
it is final; or immediately, in which case it is always final."""


@dataclass(frozen=True)
class Price:
    """Prices of an endpoint, in the policy's currency."""

    input_per_million: float
    output_per_million: float
    per_request: float = 0.0

    def cost(self, prompt_tokens: int, new_tokens: int) -> float:
        """The cost of one request."""
        return (
            self.per_request
            + (self.input_per_million * prompt_tokens + self.output_per_million * new_tokens) / 1_000_000
        )


@dataclass(frozen=True)
class Tier:
    """One OpenAI-compatible endpoint, named by the user.

    ``key_env`` names an environment variable with its key, ``key_file`` a file that only its owner may read; at most
    one is set. ``context`` and ``max_output`` are in tokens, None if unknown. ``tokenizer``: a tokenizer.json that
    counts like the endpoint; with "" the bundle's is used and ``count_margin`` of the count added. ``languages``: ISO
    639-1 codes that it handles well, empty for all. ``seconds_to_first`` and ``tokens_per_second`` are expected by the
    user, None if unknown. ``deadline``: most seconds for one request, including retries; ``stall``: seconds without
    data after which the connection counts as broken.
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
    """Requests that match the regular expression ``match`` (ignoring case) go no further than ``ceiling``."""

    name: str
    match: str
    ceiling: Trust


@dataclass(frozen=True)
class Privacy:
    """Privacy rules, and ``ceiling``: the default limit of a request. The strictest applicable limit holds."""

    ceiling: Trust = "third-party"
    rules: tuple[PrivacyRule, ...] = ()


@dataclass(frozen=True)
class OnDevice:
    """Uses of the local model.

    ``can``: features besides text; ``json-schema`` means that its answer is checked afterwards. ``languages``: ISO
    639-1 codes that it handles well, empty for all. ``max_output``: most tokens of its answer.
    """

    can: frozenset[Ability] = frozenset()
    languages: frozenset[str] = frozenset()
    max_output: int | None = None


@dataclass(frozen=True)
class Bounds:
    """Limits beyond which requests leave the device although it could answer. None: no limit and no check.

    ``seconds_to_first`` and ``seconds`` (complete answer) limit the expected times, including waiting.
    ``least_battery``: percent, unless a charger is connected; ``most_celsius``: processor temperature.
    ``free_memory``: bytes that must stay free.
    """

    seconds_to_first: float | None = None
    seconds: float | None = None
    least_battery: float | None = None
    most_celsius: float | None = None
    free_memory: int = 0


@dataclass(frozen=True)
class Budget:
    """Spending limits in ``currency``. None: no limit."""

    per_request: float | None = None
    per_day: float | None = None
    currency: str = "USD"


@dataclass(frozen=True)
class Unknown:
    """Where to answer if a check has no data."""

    latency: Fall = "local"
    battery: Fall = "local"
    thermal: Fall = "local"
    memory: Fall = "local"
    language: Fall = "local"
    quality: Fall = "local"


@dataclass(frozen=True)
class AnswerRules:
    """Checks of a local answer.

    ``most_wrong``: highest calibrated probability of being wrong that is served, None for the calibration's own
    threshold. With a guarantee, a number above its threshold is refused. ``prefix``: abandon an answer after the
    calibration's first tokens if it is clearly wrong. ``cut_off``: escalate an answer that reached its token limit.
    ``repetition``: escalate an answer that repeats itself.
    """

    most_wrong: float | None = None
    prefix: bool = True
    cut_off: bool = True
    repetition: bool = True


@dataclass(frozen=True)
class Policy:
    """A routing policy. ``tiers`` are in order of preference, cheapest first; the device comes before all of them.

    ``last_resort``: if the local answer failed its checks, or should not be made, and no tier may or can answer,
    ``answer`` returns the local one marked ``degraded``, ``refuse`` returns an error.
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


# --- state --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceState:
    """State of the machine and its budget at one moment. Unknown is None.

    ``waiting``: seconds until the model is free. ``memory_needed``: additional bytes needed to answer.
    ``unreachable``: tiers known to be down, with the reason. ``spent_today`` is in the policy's currency.
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


# --- verdict ------------------------------------------------------------------------------------

RequestCheck = Literal["privacy", "capability", "language", "context"]
StateCheck = Literal["memory", "latency", "battery", "thermal", "money", "reachable"]
AnswerCheck = Literal["ended", "repetition", "schema", "quality", "prefix"]
CheckName = Literal[UnfitCheck, RequestCheck, StateCheck, AnswerCheck]
"""Stable codes of the checks, in order."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one tier. For ``unknown``, ``detail`` says where the policy sends the request.

    ``value`` and ``limit`` are None if there is no number.
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
    """Expected cost of answering, None if unknown. ``joules`` are the device's, gross.

    ``energy`` is how the power behind the joules was obtained. ``most_new``: the limit on new tokens given to the
    tier, None for no limit.
    """

    seconds_to_first: float | None = None
    seconds: float | None = None
    joules: float | None = None
    cost: float | None = None
    energy: Literal["measured", "estimated", "none"] = "none"
    most_new: int | None = None


@dataclass(frozen=True)
class Verdict:
    """Which tier answers, and why.

    ``tier`` is DEVICE, a tier's name, or "" if none may. ``code`` is the deciding check (``local`` if none failed on
    the device), ``reason`` explains it. ``ladder`` are the further tiers to try, cheapest first, without ``tier``.
    ``degraded``: the local answer failed a check but is returned because no other tier may answer.
    """

    tier: str
    code: str
    reason: str
    findings: tuple[Finding, ...]
    expected: Expected = Expected()
    ladder: tuple[str, ...] = ()
    degraded: bool = False


# --- answer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A call of one tier. ``outcome`` describes it: ``served``, ``gave up after 16 tokens``, ``timed out``."""

    tier: str
    outcome: str
    seconds: float
    cost: float = 0.0


@dataclass(frozen=True)
class Opening:
    """The first event of an answer: the tier of the text that follows. Text of two tiers is never mixed."""

    verdict: Verdict


@dataclass(frozen=True)
class Piece:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class Routed:
    """The last event: the complete answer with the final verdict.

    ``verdict.tier`` and ``text`` are "" if no tier answered. ``broken``: an endpoint failed after text had been shown,
    so nothing may follow. ``finish``: ``stop``, ``length``, ``tool_calls``, ``cancelled``, ``error``.
    ``device_seconds``: time of the local model, whether or not its answer was used. ``message``: the endpoint's message
    as a JSON object if it has more than text, otherwise "". ``cost`` is of all attempts; ``spared`` is the cost that
    the cheapest allowed tier would have had if the device answered, None without a price.
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
"""Events of ``Router.answer``: one Opening, Pieces, one Routed; or only a Routed if no tier answers."""


# --- examples and answers -----------------------------------------------------------------------

Grading = Literal["exact", "prefix", "contains", "number", "choice"]
"""How an answer is compared with the reference, see decision/grading.py."""


@dataclass(frozen=True)
class Example:
    """A question with known answers, one line of a data file. Any of ``answers`` is right.

    ``choices``: for the grading ``choice``, all possible answers, including wrong ones.
    """

    id: str
    request: Request
    answers: tuple[str, ...]
    grading: Grading
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalAnswer:
    """The bundle's answer to an example.

    ``prefix``: the signals of the first tokens, if there were more. ``seconds_to_first`` and ``seconds`` are measured;
    ``prefix_seconds`` is the time until the prefix was complete.
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
    """An endpoint's answer to an example, or one from a file. ``seconds`` and ``cost`` are None if unknown."""

    id: str
    text: str
    right: bool
    prompt_tokens: int | None
    new_tokens: int | None
    seconds: float | None
    cost: float | None
