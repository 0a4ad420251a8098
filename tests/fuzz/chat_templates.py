"""Chat templates, of a bundle that its maker sealed: they loop, multiply, recurse, reach out, or are no templates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import strategies as st

from tests.fuzz.case import Case, Step, write
from tests.fuzz.values import damaged_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HOSTILE = (
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}", "{{ 'a' * 10**8 }}", "{{ [0] * 10**10 }}", "{{ 9**9**9 }}", "{{ 1/0 }}", "{{ 1 + 'a' }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}", "{{ 'x'|center(10**9) }}", "{{ '%1000000000d'|format(3) }}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{{ messages.foo.bar }}", "{{ messages[99].role }}", "{{ none.x }}", "{% for", "{{ ''.__class__.__mro__ }}",
    "{{ lipsum(n=1000000) }}", "{{ lipsum.__globals__.os.system('id') }}", "{{ cycler.__init__.__globals__ }}",
    "{{ [1]|batch(10**12)|list }}", "{% include 'x' %}", "{% import '/etc/passwd' as x %}", "{% extends 'x' %}",
    "{{ range(10)|map('foo')|list}}", "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "{{" + "-" * 100_000 + "1}}",
    "{% if 1 %}" * 2000, "{{ raise_exception('\\x1b]0;owned\\x07') }}", "{{ raise_exception(1) }}", "",
    "{{ raise_exception('a' * 10**7) }}", "{{ strftime_now('%Y' * 10**7) }}", "{{ strftime_now('\\ud800') }}",
    "{{ strftime_now(3) }}", "{{ '\\ud800' }}", "{{ messages|tojson(indent=10**9) }}", "{{ ({1:2})|tojson }}",
    "{% for i in range(99999) %}{{ messages }}{% endfor %}", "{{ messages.append(3) }}", "{{ 'a'.format_map({}) }}",
    "{{ '{0.__class__}'.format(1) }}", "{{ ('%s' * 10**6) % 1 }}", "{{ 'a'|indent(10**9) }}", "{{ joiner() }}",
    "{% generation %}x{% endgeneration %}", "{% break %}", "{{ x is divisibleby 0 }}", "{{ 'a'|truncate(-1) }}",
    "{{ [[]]|sum }}", "{{ messages|xmlattr }}", "{{ ''|random }}", "{{ dict(a=1)|dictsort(by=3) }}", "\x00",
    "\ufeff{{ 1 }}",
    "{% set a = [] %}{% for i in range(99999) %}{% set _ = a.append(a) %}{% endfor %}{{ a }}",
    "{{ 'a'.join(range(99999)|map('string')) * 100 }}", "{{ (range(99999)|list * 1000)|sort|length }}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ messages[0].content ~ bos_token ~ eos_token }}",
)  # fmt: skip
_GOOD = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}{% endfor %}{{ '<|assistant|>' }}"


def cases(seed: Callable[[str], Path]) -> st.SearchStrategy[Case]:
    """Templates by ``run`` and by the router's explanation; ``inspect`` renders nothing."""
    del seed
    hostile = st.sampled_from(_HOSTILE).map(
        lambda text: (ascii(text[:60]), (write("bundle/chat_template.jinja", text),))
    )

    def joined(one: str, other: str) -> tuple:
        return ascii(f"{one[:30]} {other[:30]}"), (write("bundle/chat_template.jinja", one + other),)

    nested = st.builds(joined, st.sampled_from(_HOSTILE), st.sampled_from(_HOSTILE))
    damaged = damaged_text("bundle/chat_template.jinja", _GOOD).map(lambda change: (change[0], change[1]))
    commands = st.sampled_from([
        ("run", "bundle", "Hello", "--max-new-tokens", "2"),
        ("run", "bundle", "Hello", "--max-new-tokens", "2", "--json"),
        ("route", "explain", "bundle", "Hello", "--policy", "policy/plain.toml"),
        ("inspect", "bundle"),
    ])  # fmt: skip

    def case(change: tuple, command: tuple[str, ...]) -> Case:
        how, steps = change
        return Case(f"template: {command[0]}: {how}", command, ("bundle", "policy"), (*steps, Step("reseal", "bundle")))

    return st.builds(case, st.one_of(hostile, nested, damaged), commands)
