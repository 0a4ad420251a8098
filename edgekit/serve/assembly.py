"""From a command line to a server: what is checked first, what is loaded last, and what it all means in words."""

from __future__ import annotations

import gc
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.bundle import open_bundle
from edgekit.errors import ConfigError
from edgekit.routing.policy_file import load_policy
from edgekit.serve.app import Service, Settings
from edgekit.serve.history import History, default_url
from edgekit.serve.memory import share_arenas
from edgekit.serve.running import TOKEN_VARIABLE, Running, address_of, bind, is_loopback, read_token

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgekit.serve.seam import Answerer
    from edgekit.types import Bundle
    from edgekit.types.routing import Policy

NO_HISTORY = "none"

_SWITCH = 0.001
"""Seconds that a thread keeps the interpreter while another waits for it. A short answer changes threads dozens of
times: at Python's own 5 ms, one caller's long texts make everybody's answers take three times as long."""


@dataclass(frozen=True)
class Plan:
    """What to serve, and how.

    ``history``: a URL of SQLAlchemy's, NO_HISTORY, or None for SQLite in the user's folder. ``docs``: a folder of the
    user's own, from which questions are answered. ``second``: the bundle whose opinion the calibration rests on.
    """

    bundle: Path
    policy: Path
    host: str = "127.0.0.1"
    port: int = 8080
    queue: int = 32
    token_file: Path | None = None
    history: str | None = None
    store_prompts: bool = False
    docs: Path | None = None
    threads: int | None = None
    context: int | None = None
    small_memory: bool = False
    second: Path | None = None


@dataclass(frozen=True)
class Serving:
    """A server that answers. ``means``: the policy in a sentence or two. ``history`` holds no password."""

    url: str
    bundle: str
    bundle_sha256: str
    policy: str
    means: tuple[str, ...]
    queue: int
    token: bool
    history: str | None


def serve_bundle(
    plan: Plan,
    ready: Callable[[Serving], None],
    open_router: Callable[[Plan, Bundle, Policy, float], Answerer] | None = None,
) -> None:
    """Answer until a signal comes. Everything that can be wrong is found before the model is loaded.

    Args:
        plan: what to serve.
        ready: called once requests are answered.
        open_router: in the place of edgekit's own; its last argument is what was spent today.

    Raises:
        BundleError: not a bundle, or a damaged one.
        ConfigError: the policy, the port, the token or the history cannot be used.
        RunError: the model cannot be run here.
    """
    token = read_token(plan.token_file)
    loopback = is_loopback(plan.host)
    if not loopback and not token:
        raise ConfigError(
            f"--host {plan.host} lets other machines in, and there is no token",
            f"give --token-file FILE or set {TOKEN_VARIABLE}; `openssl rand -hex 32` makes one",
        )
    share_arenas()
    with ExitStack() as stack:
        listener = stack.enter_context(bind(plan.host, plan.port))
        policy = load_policy(plan.policy)
        bundle = open_bundle(plan.bundle)
        history = None
        if plan.history != NO_HISTORY:
            history = History(plan.history or default_url(), store_prompts=plan.store_prompts)
            stack.callback(history.close)
        elif plan.store_prompts:
            raise ConfigError("--store-prompts needs a history", "leave out --history none")
        spent = history.spent_since(last_midnight()) if history else 0.0
        router = (open_router or _open_router)(plan, bundle, policy, spent)
        stack.callback(router.close)
        means = (*describe_policy(policy, bundle), *filter(None, (router.status().documents,)))
        settings = Settings(queue=plan.queue, token=token, any_host=not loopback)
        serving = Serving(
            address_of(listener), str(bundle.path), bundle.sha256, policy.name, means, plan.queue,
            bool(token), history.place if history else None,
        )  # fmt: skip
        # What is loaded stays. Collections that need not walk through it come often and take no time, so that what one
        # answer leaves behind is gone before the next thousand have spread over fresh memory.
        sys.setswitchinterval(_SWITCH)
        gc.collect()
        gc.freeze()
        gc.collect()  # from which the number of objects is counted that a full one waits for
        Running(Service(router, history, settings), lambda: ready(serving)).run_on(listener)


def describe_policy(policy: Policy, bundle: Bundle) -> tuple[str, ...]:
    """What a policy means for this bundle, in a sentence or two."""
    if not policy.tiers:
        first = "Everything is answered on this device: the policy names no endpoint."
    else:
        ladder = ", then ".join(f"{tier.name} ({tier.trust})" for tier in policy.tiers)
        first = f"Answered on this device where that can be done; what cannot goes to {ladder}"
        if policy.budget.per_day is not None:
            first += f", for at most {policy.budget.per_day:g} {policy.budget.currency} a day"
        first += "."
    if policy.privacy.rules or policy.privacy.ceiling != "third-party":
        first += f" Nothing goes further than '{policy.privacy.ceiling}'" + (
            f", and {len(policy.privacy.rules)} privacy rules narrow that." if policy.privacy.rules else "."
        )
    calibration = bundle.manifest.calibration
    if calibration is None:
        stays = "it is trusted" if policy.unknown.quality == "local" else "it is passed on"
        second = f"The bundle has no calibration: how good a local answer is is not known, and {stays}."
    else:
        most = policy.answers.most_wrong
        limit = calibration.threshold if most is None else most
        second = f"A local answer is given where it is wrong with a probability of at most {limit:.2g}."
    return first, second


def last_midnight() -> float:
    """When today began here, in seconds since 1970."""
    now = time.localtime()
    return time.mktime((now.tm_year, now.tm_mon, now.tm_mday, 0, 0, 0, 0, 0, -1))


def _open_router(plan: Plan, bundle: Bundle, policy: Policy, spent: float) -> Answerer:
    from edgekit.routing.router import open_router

    return open_router(
        bundle,
        policy,
        spent=spent,
        documents=plan.docs,
        threads=plan.threads,
        context=plan.context,
        small_memory=plan.small_memory,
        second=open_bundle(plan.second) if plan.second else None,
    )
