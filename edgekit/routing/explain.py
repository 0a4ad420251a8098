"""The decision about one prompt, with every number that it rests on, and nobody called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit import words
from edgekit.bundle import open_bundle
from edgekit.routing.decision.answer_checks import check_calibrated
from edgekit.routing.decision.decide import decide
from edgekit.routing.decision.lengths import least_tokens
from edgekit.routing.decision.prechecks import device_candidate, open_case, tier_candidate
from edgekit.routing.decision.schema import check_schema
from edgekit.routing.policy_file import load_policy
from edgekit.routing.prepare import Counter
from edgekit.routing.state import find_measurement, read_state
from edgekit.run import Tokenizer
from edgekit.types import Bundle, Sampling
from edgekit.types.routing import DeviceState, Expected, Message, Policy, Request, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from edgekit.types.routing import Override


@dataclass(frozen=True)
class Explanation:
    """A verdict and what it rests on.

    ``measurement`` says which of the bundle's it is, or why none counts; ``energy`` where joules come from, or why
    there are none; ``calibration`` what an answer is held against. ``expected`` by tier, the device among them.
    """

    bundle: str
    bundle_sha256: str
    policy: str
    currency: str
    tokens: tuple[tuple[str, int], ...]
    counted: frozenset[str]
    new_tokens: int | None
    language: str | None
    measurement: str
    energy: str
    calibration: str
    state: DeviceState
    expected: tuple[tuple[str, Expected], ...]
    verdict: Verdict


def explain_request(
    bundle: Bundle | Path | str,
    prompt: str,
    policy: Policy | Path | str,
    *,
    max_new_tokens: int | None = None,
    override: Override | None = None,
    schema: str = "",
    state: DeviceState | None = None,
) -> Explanation:
    """Decide about a prompt as the router would, without calling anyone or loading the model.

    Args:
        bundle: opened, or where it is.
        prompt: of a conversation's user, or, for a model without a chat template, a text to continue.
        policy: read, or where it is.
        max_new_tokens: most tokens of the answer, None for as many as fit.
        override: of the request.
        schema: a JSON schema that the answer must satisfy, "" for none.
        state: in the place of this machine's.

    Raises:
        BundleError: not a bundle.
        ConfigError: the policy cannot be used.
        RouteError: the schema cannot be used.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    rule = policy if isinstance(policy, Policy) else load_policy(policy)
    manifest = opened.manifest
    check_calibrated(rule, manifest.calibration)
    if schema:
        check_schema(schema)
    tokenizer = Tokenizer.of(opened)
    chat = tokenizer.has_chat_template
    request = Counter(tokenizer, rule).prepare(
        Request(
            messages=(Message("user", prompt),) if chat else (),
            prompt="" if chat else prompt,
            sampling=Sampling(max_new_tokens=max_new_tokens),
            schema=schema,
            needs=frozenset({"json-schema"} if schema else ()),
            override=override,
        )
    )
    measurement, which = find_measurement(opened)
    seen = state or read_state(manifest, least_tokens(request))
    verdict = decide(request, rule, seen, measurement)
    case = open_case(request, rule, seen)
    candidates = [device_candidate(case, measurement), *(tier_candidate(case, tier) for tier in rule.tiers)]
    return Explanation(
        bundle=str(opened.path),
        bundle_sha256=opened.sha256,
        policy=rule.name,
        currency=rule.budget.currency,
        tokens=request.tokens,
        counted=request.counted,
        new_tokens=max_new_tokens,
        language=request.language,
        measurement=which,
        energy=_energy(measurement.energy.kind, measurement.energy.meter, measurement.energy.reason)
        if measurement
        else "no measurement, so no joules",
        calibration=_calibration(opened, rule),
        state=seen,
        expected=tuple((candidate.name, candidate.expected) for candidate in candidates),
        verdict=verdict,
    )


def _energy(kind: str, meter: str, reason: str) -> str:
    return f"no meter: {reason}" if kind == "none" else f"{kind} by {meter}"


def _calibration(bundle: Bundle, policy: Policy) -> str:
    """What the probability of being wrong is held against."""
    calibration = bundle.manifest.calibration
    if calibration is None:
        return f"none: `edgekit route calibrate` makes one; the policy says '{policy.unknown.quality}'"
    most = policy.answers.most_wrong
    limit = calibration.threshold if most is None else most
    said = f"served where wrong with a probability of at most {limit:.2f}, by {calibration.data} of {calibration.time}"
    if calibration.second_sha256:
        said += f", with the second opinion of the bundle {calibration.second_sha256[:16]}"
    if promise := calibration.guarantee:
        said += f"; at most {words.percent(promise.alpha)} wrong, with confidence {words.percent(1 - promise.delta)}"
    return said
