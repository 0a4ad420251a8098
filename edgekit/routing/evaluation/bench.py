"""Compare the calibrated router with other strategies, on questions with known answers.

The bundle answers them, and so does an endpoint, or a file holds its answers. Examples that must not leave the device
are not sent and not compared.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import CloudError, ConfigError, RouteError, did_you_mean
from edgekit.routing.binding import check_second, require_calibration
from edgekit.routing.clearance import clear
from edgekit.routing.decision.answer_checks import check_calibrated
from edgekit.routing.decision.drift import Drift, measure_drift
from edgekit.routing.decision.grading import is_right
from edgekit.routing.decision.latency_model import expect_local
from edgekit.routing.decision.prechecks import check_privacy, open_case, tier_candidate
from edgekit.routing.decision.proof import (
    CLOUD,
    LOCAL,
    ORACLE,
    RANDOM,
    ROUTER,
    Operation,
    Proof,
    operate_router,
    pair_cases,
    prove,
)
from edgekit.routing.decision.score import cautious_probability
from edgekit.routing.endpoints import Endpoint
from edgekit.routing.evaluation.collect import PREFIX_TOKENS, add_second, collect_cloud, collect_local
from edgekit.routing.evaluation.examples import read_answers, read_examples
from edgekit.routing.prepare import Counter
from edgekit.routing.state import find_measurement
from edgekit.run import Tokenizer
from edgekit.types import silent
from edgekit.types.calibration import Calibration, Guarantee  # noqa: TC001 - record.py resolves these at run time
from edgekit.types.routing import CloudAnswer, DeviceState, Policy, Price, Tier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgekit.report.routing_plot import Kind, RoutingPanel
    from edgekit.types import Bundle, Measurement, Progress
    from edgekit.types.routing import Example, LocalAnswer


_UNPRICED = "no price: cost counts calls"


@dataclass(frozen=True)
class RouteBench:
    """A proof and the conditions under which it was made.

    ``cloud`` names the endpoint or file, ``price`` the source of the costs, ``energy`` that of the joules or why there
    are none. ``kept_back``: number of examples that must not leave the device. ``cut_off``: local answers of the ``n``
    compared that ended at their limit; a policy with ``answers.cut_off`` passes these on, but only the calibrated
    probability is compared here. ``whole``: the router without giving up early, None if it never does. ``drift``: of
    these answers from the calibration's.
    """

    bundle: str
    bundle_sha256: str
    data: str
    data_sha256: str
    cloud: str
    policy: str
    currency: str
    price: str
    energy: str
    time: str
    calibrated_on: str
    guarantee: Guarantee | None
    n: int
    kept_back: int
    cut_off: int
    proof: Proof
    whole: Operation | None
    drift: Drift


def choose_cloud(
    cloud: str = "",
    policy: Policy | None = None,
    *,
    model: str = "",
    key_env: str = "",
    key_file: str = "",
    price: Price | None = None,
) -> Tier | Path:
    """Choose the endpoint or the file of answers to compare with.

    Args:
        cloud: a URL, the name of one of the policy's tiers, or a file of answers; "" for the policy's first tier.
        policy: the policy with the tiers.
        model: the model to ask for at a URL.
        key_env: the variable that holds the key of a URL.
        key_file: the file that holds the key of a URL.
        price: the price of a URL, or of a file's answers.

    Raises:
        ConfigError: nothing is named, or arguments contradict each other.
    """
    tiers = policy.tiers if policy else ()
    about = {"`model`": model, "`key_env`": key_env, "`key_file`": key_file}
    given = [name for name, value in about.items() if value]
    if "://" in cloud:
        if not model:
            raise ConfigError("`cloud` is a URL, and no model is named", "pass `model`")
        return Tier("cloud", "third-party", cloud, model, key_env=key_env, key_file=key_file, price=price)
    tier = next((t for t in tiers if t.name == cloud), None) if cloud else next(iter(tiers), None)
    if tier:
        if given or price:
            raise ConfigError(
                f"{given[0] if given else 'a price'} is given, and the tier '{tier.name}' has its own in the policy",
                "remove it, or pass a URL as `cloud`",
            )
        return tier
    if not cloud:
        raise ConfigError(
            "there is no endpoint and no file of answers to compare with",
            "pass a URL (with `model`) or a file of answers as `cloud`, or a `policy` with a tier",
        )
    if given:
        raise ConfigError(f"{given[0]} is given, and `cloud` is not a URL: {cloud}", f"remove {given[0]}")
    if not Path(cloud).is_file():
        named = f"; the policy's tiers: {', '.join(t.name for t in tiers)}" if tiers else ""
        raise ConfigError(
            f"{cloud}: no such file" + (" and no such tier" if tiers else ""),
            f"{did_you_mean(cloud, [t.name for t in tiers])}pass an https URL or a file of answers as `cloud`{named}",
        )
    return Path(cloud)


def bench_routing(
    bundle: Bundle,
    data: Path,
    cloud: Tier | Path,
    *,
    policy: Policy | None = None,
    price: Price | None = None,
    environment: Mapping[str, str] = os.environ,
    threads: int | None = None,
    store: Path | None = None,
    second: Bundle | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> RouteBench:
    """Compare strategies to decide who answers. Inputs are checked before the model is loaded or an endpoint asked.

    Args:
        bundle: the opened bundle, with its calibration.
        data: questions with their answers; not those of the calibration.
        cloud: an endpoint to ask, or a file of its answers.
        policy: its privacy rules, ``answers.most_wrong`` and ``answers.prefix`` are used.
        price: the price of a file's answers without a cost.
        environment: the variables in which the endpoint's key is looked up.
        threads: as in load_runner.
        store: a folder that keeps the answers; those of the same bundle or endpoint are reused.
        second: the bundle whose opinion the calibration's score uses.
        seed: seed of the bootstrap.
        progress: called for every example.

    Raises:
        RouteError: there is no calibration, or it is for something else; data or answers are invalid or do not match.
        ConfigError: the key or the URL is invalid; the policy exceeds the calibration's guarantee.
        CloudError: the endpoint failed; its earlier answers are in ``store``.
        RunError: the bundle cannot be run here.
    """
    calibration = require_calibration(bundle)
    rule = policy or Policy("none")
    check_calibrated(rule, calibration)
    check_second(calibration, second)
    examples = read_examples(data)
    digest = sha256(data.read_bytes()).hexdigest()
    if digest == calibration.data_sha256:
        raise RouteError(
            f"{data}: the bundle was calibrated on this file, so the result would be too good",
            "pass other questions as `data`",
        )
    prefix = calibration.prefix.tokens if calibration.prefix else PREFIX_TOKENS

    def ask_bundle(some: Sequence[Example]) -> tuple[LocalAnswer, ...]:
        kept = store / "local.jsonl" if store else None
        found = collect_local(bundle, some, prefix_tokens=prefix, threads=threads, store=kept, progress=progress)
        return add_second(second, some, found, threads=threads, store=kept, progress=progress) if second else found

    if isinstance(cloud, Tier):
        with closing(Endpoint(cloud, environment=environment)) as endpoint:
            sent = tuple(e for e in examples if _may_leave(e, rule, cloud))
            if not sent:
                problem = f"{data}: privacy keeps all {len(examples)} examples on the device"
                raise RouteError(problem, "nothing was sent; check the policy's [privacy]")
            local = ask_bundle(sent)
            others = ask_all(endpoint, bundle, sent, store / "cloud.jsonl" if store else None, progress, policy=rule)
        whom, costs = f"{cloud.model} at {cloud.url}", "the endpoint's price" if cloud.price else _UNPRICED
    else:
        sent, whom = examples, cloud.name
        others, costs = _price(read_answers(cloud, sent), price, Tokenizer.of(bundle), sent)
        local = ask_bundle(sent)
    measurement, which = find_measurement(bundle)
    used = calibration if rule.answers.prefix else replace(calibration, prefix=None)
    joules = _joules(local, measurement)
    proof, whole = compare(local, others, used, threshold=rule.answers.most_wrong, joules=joules, seed=seed)
    return RouteBench(
        bundle=str(bundle.path), bundle_sha256=bundle.sha256, data=data.name, data_sha256=digest, cloud=whom,
        policy=policy.name if policy else "", currency=rule.budget.currency, price=costs,
        energy=_energy(measurement, which), time=datetime.now(UTC).isoformat(timespec="seconds"),
        calibrated_on=f"{calibration.n_fit + calibration.n_threshold} answers to {calibration.data}",
        guarantee=calibration.guarantee, n=len(sent), kept_back=len(examples) - len(sent),
        cut_off=sum(a.finish in ("length", "context") for a in local), proof=proof, whole=whole,
        drift=measure_drift([cautious_probability(calibration.score, a.signals) for a in local], calibration.scores),
    )  # fmt: skip


def compare(
    local: Sequence[LocalAnswer],
    cloud: Sequence[CloudAnswer],
    calibration: Calibration,
    *,
    threshold: float | None = None,
    joules: Sequence[float | None] | None = None,
    seed: int = 0,
) -> tuple[Proof, Operation | None]:
    """Return the proof from collected answers, and the router without giving up early (None if it never does).

    Args:
        local: the bundle's answers.
        cloud: the endpoint's answers to the same examples.
        calibration: the bundle's calibration, made on other examples.
        threshold: the router's threshold, None for the calibration's.
        joules: energy of each local answer.
        seed: seed of the bootstrap.

    Raises:
        RouteError: the answers do not match, or there are none.
    """
    limit = calibration.threshold if threshold is None else threshold
    proof = prove(pair_cases(local, cloud, calibration, joules=joules), limit, seed=seed)
    if calibration.prefix is None:
        return proof, None
    never = replace(calibration, prefix=None)
    return proof, operate_router(pair_cases(local, cloud, never, joules=joules), limit)


def panel_of(title: str, proof: Proof) -> RoutingPanel:
    """Return the data of a proof's plot."""
    from edgekit.report.routing_plot import RoutingPanel, Way

    kinds: dict[str, Kind] = {ROUTER: "router", RANDOM: "random", ORACLE: "oracle", LOCAL: "fixed", CLOUD: "fixed"}
    at = proof.get(ROUTER).operation
    return RoutingPanel(
        title=title,
        ways=tuple(Way(s.name, kinds.get(s.name, "signal"), s.curve) for s in proof.strategies),
        at=(1 - at.coverage, at.quality),
        risk=proof.risk,
        served=(at.coverage, at.failures.value) if at.failures else None,
        wrong=1 - proof.local_quality,
    )


def _may_leave(example: Example, policy: Policy, tier: Tier) -> bool:
    """Whether privacy allows an example to go to a tier, by the router's own check."""
    case = open_case(example.request, replace(policy, tiers=(tier,)), DeviceState(context=0))
    return check_privacy(case, tier_candidate(case, tier)).outcome == "pass"


def ask_all(
    endpoint: Endpoint,
    bundle: Bundle,
    examples: Sequence[Example],
    store: Path | None = None,
    progress: Progress = silent,
    *,
    policy: Policy | None = None,
    whom: str = "",
) -> tuple[CloudAnswer, ...]:
    """Ask an endpoint all examples, one at a time, and grade its answers.

    Args:
        endpoint: the opened endpoint; it refuses requests that must stay on the device.
        bundle: its tokenizer counts tokens if the endpoint does not report them.
        examples: the examples to ask.
        store: a file that keeps the answers; see collect_cloud.
        progress: called for every example.
        policy: the policy whose privacy rules apply, None for no rules.
        whom: identifies the source of the answers in ``store``, "" for the endpoint's URL and model.

    Raises:
        CloudError: the endpoint failed.
        RouteError: ``store`` is not a file of collected answers.
    """
    tier = endpoint.tier
    alone = Policy("bench", (tier,))
    counter = Counter.of(bundle, alone)
    rule = replace(policy, tiers=(tier,)) if policy else alone

    def ask(example: Example) -> CloudAnswer:
        with endpoint.ask(clear(example.request, rule)) as reply:
            try:
                text = "".join(reply)
            except CloudError:
                # An empty answer counts as wrong and does not end the run.
                if not reply.empty:
                    raise
                text = ""
        asked = counter.prepare(example.request)
        prompt, new = counter.usage(asked, tier.name, text, reply.prompt_tokens, reply.new_tokens)
        right = is_right(text, example.answers, example.grading, example.choices)
        cost = tier.price.cost(prompt, new) if tier.price else None
        return CloudAnswer(example.id, text, right, prompt, new, reply.seconds, cost)

    # With the price in the key, a stored answer is not reused with the cost of another price.
    name = f"{whom or f'{tier.url} {tier.model}'} {tier.max_output} {tier.price}"
    return collect_cloud(ask, examples, whom=name, store=store, progress=progress)


def _price(
    answers: tuple[CloudAnswer, ...], price: Price | None, tokenizer: Tokenizer, examples: Sequence[Example]
) -> tuple[tuple[CloudAnswer, ...], str]:
    """Return a file's answers with their costs, and the source of these."""
    known = sum(a.cost is not None for a in answers)
    if price is None or known == len(answers):
        complete = known == len(answers)
        return answers, "the file's own costs" if complete else _UNPRICED
    priced, guessed = [], 0
    for answer, example in zip(answers, examples, strict=True):
        if answer.cost is not None:
            priced.append(answer)
            continue
        prompt, new = answer.prompt_tokens, answer.new_tokens
        guessed += prompt is None or new is None
        if prompt is None:
            prompt = len(tokenizer.encode(example.request.text))
        if new is None:
            new = len(tokenizer.encode(answer.text))
        priced.append(replace(answer, cost=price.cost(prompt, new)))
    source = "the given price"
    if guessed:
        source += f"; estimated for {guessed} answers, with tokens counted by the bundle's tokenizer"
    return tuple(priced), source


def _joules(local: Sequence[LocalAnswer], measurement: Measurement | None) -> list[float | None]:
    """Return each answer's energy: the power measured on this kind of machine times the answer's seconds."""
    found = []
    for answer in local:
        expected = expect_local(measurement, answer.prompt_tokens, answer.signals.tokens, 0.0)
        watts = expected.joules / expected.seconds if expected.joules and expected.seconds else None
        found.append(None if watts is None else watts * answer.seconds)
    return found


def _energy(measurement: Measurement | None, which: str) -> str:
    if measurement is None:
        return f"not known, without a measurement: {which}"
    energy = measurement.energy
    if energy.kind == "none":
        return f"not measured: {energy.reason}"
    return f"power {energy.kind} by {energy.meter}, times the seconds of each answer"
