"""Assemble the server: check all inputs, load the model last, and describe what is served."""

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
"""Python's switch interval in seconds. A short answer changes threads dozens of times: at the default of 5 ms, one
caller's long texts make all answers take three times as long."""


@dataclass(frozen=True)
class Plan:
    """What to serve, and how.

    ``history``: an SQLAlchemy URL, NO_HISTORY, or None for SQLite in the user's state folder. ``docs``: a folder of the
    user's documents, from which questions are answered. ``second``: the bundle whose opinion the calibration uses.
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
    """A running server. ``means``: the policy in a few sentences. ``history`` contains no password."""

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
    """Serve until a signal arrives. All inputs are checked before the model is loaded.

    Args:
        plan: what to serve.
        ready: called once requests are answered.
        open_router: replaces edgekit's own; its last argument is the money spent today.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: the policy, the port, the token or the history is invalid.
        RunError: the model cannot be run here.
    """
    token = read_token(plan.token_file)
    loopback = is_loopback(plan.host)
    if not loopback and not token:
        raise ConfigError(
            f"other machines can reach `host={plan.host}`, and there is no token",
            f"pass `token_file` or set {TOKEN_VARIABLE}; create a token with `openssl rand -hex 32`",
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
            raise ConfigError("`store_prompts` needs a history", f"remove `history={NO_HISTORY}`")
        spent = history.spent_since(last_midnight()) if history else 0.0
        router = (open_router or _open_router)(plan, bundle, policy, spent)
        stack.callback(router.close)
        means = (*describe_policy(policy, bundle), *filter(None, (router.status().documents,)))
        settings = Settings(queue=plan.queue, token=token, any_host=not loopback)
        about, kept = (str(bundle.path), bundle.sha256, policy.name, means), history.place if history else None
        serving = Serving(address_of(listener), *about, plan.queue, bool(token), kept)
        # Loaded objects stay for the process's life. Excluding them keeps collections short and frequent, so that the
        # remains of an answer are freed before thousands of them fragment the memory.
        sys.setswitchinterval(_SWITCH)
        gc.collect()
        gc.freeze()
        gc.collect()  # resets the object count that triggers the next full collection
        Running(Service(router, history, settings), lambda: ready(serving)).run_on(listener)


def describe_policy(policy: Policy, bundle: Bundle) -> tuple[str, ...]:
    """Describe what a policy means for this bundle, in two sentences or more."""
    if not policy.tiers:
        first = "Everything is answered on this device: the policy has no endpoint."
    else:
        ladder = ", then ".join(f"{tier.name} ({tier.trust})" for tier in policy.tiers)
        first = f"Answers on this device if possible, else on {ladder}"
        if policy.budget.per_day is not None:
            first += f", for at most {policy.budget.per_day:g} {policy.budget.currency} a day"
        first += "."
    if policy.privacy.rules or policy.privacy.ceiling != "third-party":
        first += f" The privacy ceiling is '{policy.privacy.ceiling}'" + (
            f", narrowed by {len(policy.privacy.rules)} privacy rules." if policy.privacy.rules else "."
        )
    calibration = bundle.manifest.calibration
    if calibration is None:
        stays = "served" if policy.unknown.quality == "local" else "passed on"
        second = f"The bundle has no calibration: local answers of unknown quality are {stays}."
    else:
        most = policy.answers.most_wrong
        limit = calibration.threshold if most is None else most
        second = f"A local answer is served if its probability of being wrong is at most {limit:.2g}."
    return first, second


def last_midnight() -> float:
    """Return the start of the current local day, in seconds since 1970."""
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
