"""Chat templates and tokenizers of strangers run in a cell: bounded in time, memory and output, whatever they do."""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers

from edgekit.errors import BundleError, RunError
from edgekit.run import Tokenizer
from edgekit.run.text import _open_codec
from edgekit.strangers.cell import Cell
from edgekit.testing import CHAT_TEMPLATE, tiny_tokenizer

HELLO = [{"role": "user", "content": "Hello"}]
CODEC = tokenizers.Tokenizer.from_str(tiny_tokenizer())


def tokenizer(template: str) -> Tokenizer:
    return Tokenizer(CODEC, template=template, special_tokens={"eos_token": "<|im_end|>"})


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        ("{{ 3**(3**(3**3)) }}", "processor time"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}", "processor time"),
        ("{{ 'a' * 10**10 }}", "memory"),
        ("{{ [0] * 10**10 }}", "memory"),
        ("{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}", ""),
        ("{{ 'x'|center(10**10) }}", ""),
        ("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}", "characters"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 1 + 'a' }}", "unsupported operand"),
        ("{{ messages[0].content.missing.more }}", "missing"),
        ("{% for", "end of template"),
        ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "recursion"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ lipsum.__globals__.os.system('touch /tmp/x') }}", "unsafe"),
    ],
)
def test_templates_that_do_not_behave(template: str, said: str) -> None:
    renderer = tokenizer(template)
    for _ in range(2):  # the process that ended is followed by another
        with pytest.raises(RunError) as caught:
            renderer.render_chat(HELLO)
        assert caught.value.hint
        assert "chat template rejects" in caught.value.message
        assert said in caught.value.message


def test_messages_that_no_json_holds() -> None:
    with pytest.raises(RunError) as caught:
        tokenizer(CHAT_TEMPLATE).render_chat([{"role": "user", "content": object()}])  # type: ignore[dict-item]
    assert caught.value.hint


def test_threads_share_a_cell() -> None:
    renderer = tokenizer("{{ messages[0].content }}{{ eos_token }}")
    texts = [str(n) * 1000 for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: renderer.render_chat([{"role": "user", "content": text}]), texts))
    assert found == [f"{text}<|im_end|>" for text in texts]


def test_a_large_conversation_passes() -> None:
    long = "wort " * 400_000
    assert tokenizer("{{ messages[0].content }}").render_chat([{"role": "user", "content": long}]) == long


def ask(cell: Cell) -> str:
    request = {"do": "render", "template": "{{ a }}", "values": {"a": 3}, "letters": 9}
    return str(cell.ask(request, seconds=5, what="x", error=RunError, hint="y")["text"])


def test_a_cell_is_not_ended_by_ctrl_c_and_ends_with_its_owner() -> None:
    cell = Cell()
    assert ask(cell) == "3"
    process = cell._process
    assert process is not None
    os.kill(process.pid, signal.SIGINT)
    assert ask(cell) == "3"
    assert cell._process is process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert ask(cell) == "3"
    assert cell._process is not None
    pid = cell._process.pid
    del cell
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_render_costs_little() -> None:
    renderer = tokenizer(CHAT_TEMPLATE)
    renderer.render_chat(HELLO)
    times = []
    for _ in range(100):
        start = time.perf_counter()
        renderer.render_chat(HELLO)
        times.append(time.perf_counter() - start)
    assert sorted(times)[50] < 0.05  # 0.0001 on an idle machine


def bundle_file(tmp_path, pattern: str):
    document = json.loads(tiny_tokenizer())
    document["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return _open_codec((tmp_path / "tokenizer.json").read_bytes(), "tokenizer.json")


def test_an_unknown_expression_encodes_apart_and_alike(tmp_path) -> None:
    codec, encoder = bundle_file(tmp_path, r"\w+|[^\w]")
    assert encoder is not None
    text = "The quick brown fox, naïve 🙂 jumps."
    assert Tokenizer(codec, encoder=encoder).encode(text) == codec.encode(text).ids


@pytest.mark.timeout(120)
def test_an_expression_that_explodes_is_an_error(tmp_path) -> None:
    codec, encoder = bundle_file(tmp_path, "(a+)+b")
    with pytest.raises(RunError, match="rejects this text") as caught:
        Tokenizer(codec, encoder=encoder).encode("a" * 3000)
    assert caught.value.hint


def test_an_expression_that_is_none_is_an_error(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be opened") as caught:
        bundle_file(tmp_path, "(" * 3000)
    assert caught.value.hint
