"""Read a policy from its TOML file. See examples/routing/policy.toml for every key.

A rule that cannot work is refused here: found later, it would have sent a prompt where it must not go.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from edgekit.routing.decision.patterns import NO_FORM, find_fault
from edgekit.strangers.toml_table import Table
from edgekit.types.routing import (
    DEVICE,
    TRUST,
    Ability,
    AnswerRules,
    Bounds,
    Budget,
    Fall,
    OnDevice,
    Policy,
    Price,
    Privacy,
    PrivacyRule,
    Show,
    Tier,
    Trust,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.errors import ConfigError

_HINT = "examples/routing/policy.toml shows one with every key"
_KEYS = ("name", "show", "last_resort", "privacy", "device", "bounds", "budget", "unknown", "answers", "tier")
_PRIVACY_KEYS, _RULE_KEYS = ("ceiling", "rule"), ("name", "match", "ceiling")
_DEVICE_KEYS = ("can", "languages", "max_output")
_BOUND_KEYS = ("seconds_to_first", "seconds", "least_battery", "most_celsius", "free_memory")
_BUDGET_KEYS = ("per_request", "per_day", "currency")
_UNKNOWN_KEYS = ("latency", "battery", "thermal", "memory", "language", "quality")
_ANSWER_KEYS = ("most_wrong", "prefix", "cut_off", "repetition")
_PRICE_KEYS = ("input_per_million", "output_per_million", "per_request")
_TIER_KEYS = (
    *("name", "trust", "url", "model", "key_env", "key_file", "context", "max_output", "tokenizer", "count_margin"),
    *("price", "can", "languages", "seconds_to_first", "tokens_per_second", "deadline", "stall", "retries"),
)
_OUTSIDE: tuple[Trust, ...] = ("private", "third-party")
_MOST_RETRIES = 10


def load_policy(path: str | Path) -> Policy:
    """Read a policy. Its paths (``key_file``, ``tokenizer``) are relative to its own folder; ``~`` is the user's home.

    ``name`` defaults to the file's name without its suffix.

    Raises:
        ConfigError: the file does not exist or is not TOML; a key is unknown or missing; a value is invalid; rules
            contradict each other. No message holds a key or a URL with a secret.
    """
    path = Path(path)
    table = Table.of(path, "policy", _KEYS, _HINT)
    tiers = tuple(_tier(row, path.parent) for row in table.tables("tier", _TIER_KEYS))
    policy = Policy(
        name=table.get("name", str, path.stem),
        tiers=tiers,
        privacy=_privacy(table.table("privacy", _PRIVACY_KEYS)) if table.has("privacy") else Privacy(),
        device=_device(table.table("device", _DEVICE_KEYS)) if table.has("device") else OnDevice(),
        bounds=_bounds(table.table("bounds", _BOUND_KEYS)) if table.has("bounds") else Bounds(),
        budget=_budget(table.table("budget", _BUDGET_KEYS)) if table.has("budget") else Budget(),
        unknown=_unknown(table.table("unknown", _UNKNOWN_KEYS)) if table.has("unknown") else Unknown(),
        answers=_answers(table.table("answers", _ANSWER_KEYS)) if table.has("answers") else AnswerRules(),
        show=table.choice("show", get_args(Show), "checked"),
        last_resort=table.choice("last_resort", ("answer", "refuse"), "answer"),
    )
    _agree(table, policy)
    return policy


def _privacy(table: Table) -> Privacy:
    ceiling = table.choice("ceiling", TRUST, "third-party")
    rules = tuple(_rule(row, ceiling) for row in table.tables("rule", _RULE_KEYS))
    _distinct(table, "rule", [rule.name for rule in rules])
    return Privacy(ceiling, rules)


def _rule(table: Table, ceiling: Trust) -> PrivacyRule:
    rule = PrivacyRule(table.get("name", str), table.get("match", str), table.choice("ceiling", TRUST))
    if fault := find_fault(rule.match):
        raise table.error(
            f"'{table.where}match' {fault}: {rule.match!r}",
            "set the ceiling of [privacy], which applies to every request"
            if fault == "matches every text"
            else f"write it in {NO_FORM}; or split it into several rules",
        )
    if rule.ceiling == "third-party":
        raise table.error(f"the privacy rule '{rule.name}' has no effect: its ceiling is third-party", "remove it")
    if TRUST.index(rule.ceiling) > TRUST.index(ceiling):
        raise table.error(
            f"the privacy rule '{rule.name}' allows {rule.ceiling}, and the ceiling of all requests is {ceiling}",
            "raise the ceiling of [privacy], or lower the rule's",
        )
    return rule


def _device(table: Table) -> OnDevice:
    can = table.words("can", get_args(Ability), ())
    if beyond := [ability for ability in can if ability != "json-schema"]:
        raise table.error(f"the device does not support {beyond[0]}: a bundle is text only", "move it to a tier's can")
    return OnDevice(frozenset(can), _languages(table), _count(table, "max_output"))


def _bounds(table: Table) -> Bounds:
    return Bounds(
        seconds_to_first=table.positive("seconds_to_first"),
        seconds=table.positive("seconds"),
        least_battery=table.number("least_battery", most=100),
        most_celsius=table.number("most_celsius", least=-50, most=150),
        free_memory=table.whole("free_memory", at_least=0) if table.has("free_memory") else 0,
    )


def _budget(table: Table) -> Budget:
    budget = Budget(table.number("per_request"), table.number("per_day"), table.get("currency", str, "USD"))
    if budget.per_request is not None and budget.per_day is not None and budget.per_request > budget.per_day:
        raise table.error(
            f"budget.per_request ({budget.per_request:g}) is above budget.per_day ({budget.per_day:g})",
            "lower budget.per_request, or raise budget.per_day",
        )
    return budget


def _unknown(table: Table) -> Unknown:
    return Unknown(**{key: table.choice(key, get_args(Fall), "local") for key in _UNKNOWN_KEYS})


def _answers(table: Table) -> AnswerRules:
    return AnswerRules(
        most_wrong=table.number("most_wrong", most=1),
        prefix=table.get("prefix", bool, True),
        cut_off=table.get("cut_off", bool, True),
        repetition=table.get("repetition", bool, True),
    )


def _tier(table: Table, folder: Path) -> Tier:
    name = table.get("name", str)
    table.require(bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)), "name", "letters, digits and . _ -", name)
    if name == DEVICE:
        raise table.error(f"a tier must not be called '{DEVICE}', the name of this machine", "choose another name")
    if table.get("trust", str) == DEVICE:
        raise table.error(
            f"tier '{name}' cannot have trust 'device': it is another program",
            "use 'private' for an endpoint of your own, 'third-party' for any other",
        )
    trust = table.choice("trust", _OUTSIDE)
    key_env, key_file = table.get("key_env", str, ""), table.get("key_file", str, "")
    if key_env and key_file:
        raise table.error(f"tier '{name}' has both key_env and key_file", "keep one of them")
    if key_env and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key_env):
        # Not shown: it may be a key.
        raise table.error(
            f"'{table.where}key_env' is not the name of an environment variable",
            "give the variable's name; if this was the key itself, revoke it: a policy is no place for keys",
        )
    price = table.table("price", _PRICE_KEYS) if table.has("price") else None
    usual = Tier(name, trust, "", "")
    deadline = table.positive("deadline") or usual.deadline
    return Tier(
        name=name,
        trust=trust,
        url=_url(table, name, trust),
        model=_filled(table, "model"),
        key_env=key_env,
        key_file=_path(folder, key_file),
        context=_count(table, "context"),
        max_output=_count(table, "max_output"),
        tokenizer=_path(folder, table.get("tokenizer", str, "")),
        count_margin=usual.count_margin if (margin := table.number("count_margin", most=10)) is None else margin,
        price=_price(price) if price else None,
        can=frozenset(table.words("can", get_args(Ability), ())),
        languages=_languages(table),
        seconds_to_first=table.positive("seconds_to_first"),
        tokens_per_second=table.positive("tokens_per_second"),
        deadline=deadline,
        stall=table.positive("stall") or min(usual.stall, deadline),
        retries=table.choice("retries", range(_MOST_RETRIES + 1)) if table.has("retries") else usual.retries,
    )


def _url(table: Table, name: str, trust: Trust) -> str:
    """Return the endpoint's URL. It is never shown before it is known to hold no secret."""
    url = _filled(table, "url")
    key = f"'{table.where}url'"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise table.error(f"{key} is not a URL", "give one such as https://api.example.com/v1") from None
    if parts.username is not None or parts.password is not None:
        raise table.error(f"{key} holds a user name or a password", "give the key by key_env or key_file")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise table.error(f"{key} has a query or a fragment", "remove it, and give the key by key_env or key_file")
    if parts.scheme not in ("http", "https") or not host:
        raise table.error(f"{key} is not an http or https URL", "give one such as https://api.example.com/v1")
    if parts.scheme == "http" and trust == "third-party" and not _is_loopback(host):
        raise table.error(f"tier '{name}' would send prompts and its key to {host} unencrypted", "use https")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _price(table: Table) -> Price:
    values = {key: table.number(key) for key in _PRICE_KEYS}
    for key in _PRICE_KEYS[:2]:
        if values[key] is None:
            raise table.error(f"'{table.where}{key}' is missing", "give both prices; 0 if it is free")
    return Price(values["input_per_million"] or 0.0, values["output_per_million"] or 0.0, values["per_request"] or 0.0)


def _languages(table: Table) -> frozenset[str]:
    codes: tuple[str, ...] = table.words("languages", (), ())
    for code in codes:
        table.require(bool(re.fullmatch("[a-z]{2}", code)), "languages", "ISO 639-1 codes such as 'en'", code)
    return frozenset(codes)


def _count(table: Table, key: str) -> int | None:
    return table.whole(key, at_least=1) if table.has(key) else None


def _filled(table: Table, key: str) -> str:
    value = table.get(key, str)
    table.require(bool(value.strip()), key, "some text", value)
    return value.strip()


def _path(folder: Path, text: str) -> str:
    return str(folder / Path(text).expanduser()) if text else ""


def _distinct(table: Table, noun: str, names: Sequence[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise table.error(f"two {noun}s are called '{twice}'", "give each its own name")


def _agree(table: Table, policy: Policy) -> None:
    """Raise if two settings contradict each other."""
    _distinct(table, "tier", [tier.name for tier in policy.tiers])
    if fault := _alone(table, policy) if not policy.tiers else _priced(table, policy):
        raise fault
    if policy.show == "prefix" and not policy.answers.prefix:
        raise table.error(
            "show is 'prefix', and answers.prefix is false",
            "set answers.prefix = true, or show to 'checked' or 'at-once'",
        )
    for tier in policy.tiers:
        if tier.stall > tier.deadline:
            raise table.error(
                f"tier '{tier.name}': stall ({tier.stall:g} s) is above deadline ({tier.deadline:g} s)",
                "lower its stall, or raise its deadline",
            )


def _alone(table: Table, policy: Policy) -> ConfigError | None:
    """Find a setting that needs a tier, in a policy without one."""
    leaving = [key for key in _UNKNOWN_KEYS if getattr(policy.unknown, key) == "cloud"]
    if leaving:
        return table.error(f"unknown.{leaving[0]} is 'cloud' and there is no tier", "add a [[tier]], or use 'local'")
    if policy.budget != Budget(currency=policy.budget.currency):
        return table.error("there is a budget and no tier to spend it on", "add a [[tier]], or remove [budget]")
    if policy.bounds != Bounds() and policy.last_resort == "answer":
        return table.error(
            "[bounds] has no effect without a tier if last_resort is 'answer'",
            "add a [[tier]], remove [bounds], or set last_resort = 'refuse'",
        )
    return None


def _priced(table: Table, policy: Policy) -> ConfigError | None:
    """Find a missing price, or tiers that are not in the order of their prices."""
    priced = [tier for tier in policy.tiers if tier.price]
    # A cloud-ok request may reach every tier, whatever the ceiling: each needs a price.
    limited = policy.budget.per_request is not None or policy.budget.per_day is not None
    free = next((tier for tier in policy.tiers if not tier.price), None)
    if limited and free:
        return table.error(
            f"there is a budget and tier '{free.name}' has no price",
            "add price = { input_per_million = ..., output_per_million = ... }; 0 if it is free",
        )
    for one, other in pairwise(priced):
        first, then = (tier.price.cost(1000, 1000) if tier.price else 0.0 for tier in (one, other))
        if first > then:
            return table.error(
                f"tier '{one.name}' is listed before '{other.name}' and costs more: {first:g} and {then:g} for 1,000 "
                "tokens in and 1,000 out",
                "list the cheapest tier first",
            )
    return None
