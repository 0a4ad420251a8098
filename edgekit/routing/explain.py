"""Explain the routing decision for one prompt, with every number it is based on, without sending anything."""

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
    """A verdict and what it is based on.

    ``measurement`` describes the measurement in use, or why there is none; ``energy`` the source of the joules, or why
    there are none; ``calibration`` the limit that answers are compared with. ``expected`` is by tier, device included.
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
    """Decide about a prompt as the router would, without calling an endpoint or loading the model.

    Args:
        bundle: an opened bundle, or its path.
        prompt: the user's message, or the text to continue if the model has no chat template.
        policy: a policy, or the path of its file.
        max_new_tokens: most tokens of the answer, None for as many as fit.
        override: the request's own routing choice, None for none.
        schema: a JSON schema that the answer must satisfy, "" for none.
        state: replaces the state read from this machine.

    Raises:
        BundleError: the path holds no bundle.
        ConfigError: the policy is invalid.
        RouteError: the schema is not supported.
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
        else "not known: there is no measurement",
        calibration=_calibration(opened, rule),
        state=seen,
        expected=tuple((candidate.name, candidate.expected) for candidate in candidates),
        verdict=verdict,
    )


def _energy(kind: str, meter: str, reason: str) -> str:
    return f"not measured: {reason}" if kind == "none" else f"{kind} by {meter}"


def _calibration(bundle: Bundle, policy: Policy) -> str:
    """Describe the limit that the probability of being wrong is compared with."""
    calibration = bundle.manifest.calibration
    if calibration is None:
        return f"none (run `edgekit route calibrate`); the policy's unknown.quality is '{policy.unknown.quality}'"
    most = policy.answers.most_wrong
    limit = calibration.threshold if most is None else most
    text = f"answers are served up to P(wrong) = {limit:.2f}, calibrated on {calibration.data} at {calibration.time}"
    if calibration.second_sha256:
        text += f", with a second opinion from bundle {calibration.second_sha256[:16]}"
    if guarantee := calibration.guarantee:
        text += f"; at most {words.percent(guarantee.alpha)} wrong at {words.percent(1 - guarantee.delta)} confidence"
    return text
