"""What the rule costs and saves on questions whose answers are known, beside what it is to be measured against.

The bundle answers them, and so does an endpoint that the user names, or a file says what it answered. What must not
leave the device is not sent, and left out of the comparison.
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


_UNPRICED = "no price: calls are counted"


@dataclass(frozen=True)
class RouteBench:
    """A proof and what it rests on.

    ``cloud`` says who stood for it, ``price`` where costs come from, ``energy`` where joules do or why there are none.
    ``kept_back``: examples that must not leave the device: not sent, and not compared. ``cut_off``: of the ``n``
    compared, local answers that their limit ended; a policy with ``answers.cut_off`` passes these on, and that check is
    not part of the comparison, which is of the calibrated probability alone. ``whole``: the router without giving up
    early, None where it never does. ``drift``: of these answers from the calibration's.
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
    """Who stands for the cloud, as the words of a command line say.

    Args:
        cloud: an address, the name of one of the policy's tiers, or a file of answers; "" for the policy's first tier.
        policy: where tiers are named.
        model: at an address.
        key_env: variable that holds the key, at an address.
        key_file: file that holds it.
        price: of an address, or of a file's answers.

    Raises:
        ConfigError: nobody is named, or what is given does not go together.
    """
    tiers = policy.tiers if policy else ()
    about = {"--model": model, "--key-env": key_env, "--key-file": key_file}
    given = [option for option, value in about.items() if value]
    if "://" in cloud:
        if not model:
            raise ConfigError("an address answers only for a model that is named", "give --model NAME")
        return Tier("cloud", "third-party", cloud, model, key_env=key_env, key_file=key_file, price=price)
    tier = next((t for t in tiers if t.name == cloud), None) if cloud else next(iter(tiers), None)
    if tier:
        if given or price:
            option = given[0] if given else "--price-in"
            raise ConfigError(
                f"{option} is given, and the tier '{tier.name}' has its own in the policy",
                f"leave {option} out, or give --cloud URL",
            )
        return tier
    if not cloud:
        raise ConfigError(
            "nobody is named to compare with",
            "give --cloud URL with --model NAME, --cloud answers.jsonl, or a --policy with a tier",
        )
    if given:
        raise ConfigError(f"{given[0]} is given, and --cloud {cloud} is no address: nobody is asked", "leave it out")
    if not Path(cloud).is_file():
        named = f"; the policy's tiers: {', '.join(t.name for t in tiers)}" if tiers else ""
        raise ConfigError(
            f"--cloud {cloud}: no such file" + (" and no such tier" if tiers else ""),
            f"{did_you_mean(cloud, [t.name for t in tiers])}give an https address or a file of answers{named}",
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
    """Compare ways to decide who answers. What can be wrong is found before the model is loaded or anyone asked.

    Args:
        bundle: the opened bundle, with its calibration.
        data: questions with their answers; not those of the calibration.
        cloud: an endpoint to ask, or a file of its answers.
        policy: its privacy, and ``answers.most_wrong`` and ``answers.prefix``.
        price: of a file's answers whose cost it does not say.
        environment: where the endpoint's key is looked up.
        threads: as in load_runner.
        store: a folder where answers are kept, and taken from if they are of the same bundle or endpoint.
        second: the bundle whose opinion the calibration rests on.
        seed: of the bootstrap.
        progress: hears of every example.

    Raises:
        RouteError: no calibration, or one of something else; data or answers that cannot be used or do not fit.
        ConfigError: the key or the address cannot be used; the policy asks more than the calibration guarantees.
        CloudError: the endpoint failed; what it answered before is in ``store``.
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
            f"{data}: the calibration was made of this very file, and would look better on it than it is",
            "give questions that it has not seen",
        )
    prefix = calibration.prefix.tokens if calibration.prefix else PREFIX_TOKENS

    def ask_bundle(some: Sequence[Example]) -> tuple[LocalAnswer, ...]:
        kept = store / "local.jsonl" if store else None
        said = collect_local(bundle, some, prefix_tokens=prefix, threads=threads, store=kept, progress=progress)
        return add_second(second, some, said, threads=threads, store=kept, progress=progress) if second else said

    if isinstance(cloud, Tier):
        with closing(Endpoint(cloud, environment=environment)) as endpoint:
            sent = tuple(e for e in examples if _may_leave(e, rule, cloud))
            if not sent:
                raise RouteError(f"{data}: none of {len(examples)} examples may leave the device", "nothing was sent")
            local = ask_bundle(sent)
            others = ask_all(endpoint, bundle, sent, store / "cloud.jsonl" if store else None, progress, policy=rule)
        whom, costs = f"{cloud.model} at {cloud.url}", "by its price" if cloud.price else _UNPRICED
    else:
        sent, whom = examples, cloud.name
        others, costs = _price(read_answers(cloud, sent), price, Tokenizer.of(bundle), sent)
        local = ask_bundle(sent)
    measurement, which = find_measurement(bundle)
    proof, whole = compare(
        local, others, calibration if rule.answers.prefix else replace(calibration, prefix=None),
        threshold=rule.answers.most_wrong, joules=_joules(local, measurement), seed=seed,
    )  # fmt: skip
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
    """The proof of answers that are there, and the router without giving up early (None where it never does).

    Args:
        local: of the bundle.
        cloud: of the endpoint, for the same examples.
        calibration: of the bundle, made of other examples.
        threshold: the router's, None for the calibration's.
        joules: of each local answer.
        seed: of the bootstrap.

    Raises:
        RouteError: answers that do not fit together, or none.
    """
    limit = calibration.threshold if threshold is None else threshold
    proof = prove(pair_cases(local, cloud, calibration, joules=joules), limit, seed=seed)
    if calibration.prefix is None:
        return proof, None
    never = replace(calibration, prefix=None)
    return proof, operate_router(pair_cases(local, cloud, never, joules=joules), limit)


def panel_of(title: str, proof: Proof) -> RoutingPanel:
    """A proof as it is drawn."""
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
    """Whether privacy lets an example go to a tier: the same check as before every request."""
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
    """Put examples to an endpoint, one after another, and grade what comes.

    Args:
        endpoint: opened; it refuses requests that must stay on the device.
        bundle: its tokenizer counts where the endpoint does not say.
        examples: what to ask.
        store: a file that keeps the answers; see collect_cloud.
        progress: hears of every example.
        policy: whose privacy rules hold, None where there is none.
        whom: what its answers depend on, "" for its address and model.

    Raises:
        CloudError: it failed.
        RouteError: ``store`` is another kind of file.
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
                # No answer is a wrong one; what was said of the others does not end with it.
                if not reply.empty:
                    raise
                text = ""
        asked = counter.prepare(example.request)
        prompt, new = counter.usage(asked, tier.name, text, reply.prompt_tokens, reply.new_tokens)
        return CloudAnswer(
            example.id, text, is_right(text, example.answers, example.grading, example.choices), prompt, new,
            reply.seconds, tier.price.cost(prompt, new) if tier.price else None,
        )  # fmt: skip

    # The price is part of what is kept: an answer of before must not come back with another one's cost.
    name = f"{whom or f'{tier.url} {tier.model}'} {tier.max_output} {tier.price}"
    return collect_cloud(ask, examples, whom=name, store=store, progress=progress)


def _price(
    answers: tuple[CloudAnswer, ...], price: Price | None, tokenizer: Tokenizer, examples: Sequence[Example]
) -> tuple[tuple[CloudAnswer, ...], str]:
    """A file's answers with their costs, and where these come from."""
    known = sum(a.cost is not None for a in answers)
    if price is None or known == len(answers):
        complete = known == len(answers)
        return answers, "as the answers say" if complete else _UNPRICED
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
    words = "by the price given"
    if guessed:
        words += f"; estimated for {guessed} answers: their tokens are counted by the bundle's tokenizer"
    return tuple(priced), words


def _joules(local: Sequence[LocalAnswer], measurement: Measurement | None) -> list[float | None]:
    """Of each answer: the power that was measured on this kind of machine, over the seconds that it took."""
    found = []
    for answer in local:
        expected = expect_local(measurement, answer.prompt_tokens, answer.signals.tokens, 0.0)
        watts = expected.joules / expected.seconds if expected.joules and expected.seconds else None
        found.append(None if watts is None else watts * answer.seconds)
    return found


def _energy(measurement: Measurement | None, which: str) -> str:
    if measurement is None:
        return f"no joules: of measurements, {which}"
    energy = measurement.energy
    if energy.kind == "none":
        return f"no meter: {energy.reason}"
    return f"power {energy.kind} by {energy.meter}, over the seconds of each answer"
