"""The program that runs in a cell: ``python cell_program.py MEMORY``, started by cell.py.

Requests and answers are JSON preceded by 8 bytes of length, on stdin and stdout. It imports nothing of edgekit, so that
it is ready in 0.1 s, and each package only when a request needs it. It cannot write files. A request that exceeds its
processor time ends the process by a kernel timer, whatever the code is doing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
import tempfile
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Template

_held: dict[str, Any] = {}
"""The open tokenizer."""


def main(memory: int) -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and closes stdin
    for limit, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    tempfile.tempdir = os.sep  # packages ask for it as they load; by default a file would be written to find one
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    while length := int.from_bytes(requests.read(8), "little"):
        request = json.loads(requests.read(length))
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))
        answer = _answer(request)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, len(answer).to_bytes(8, "little") + answer)


def _answer(request: dict[str, Any]) -> bytes:
    try:
        return json.dumps(_WORK[request.pop("do")](**request)).encode()
    except MemoryError:
        return b'{"error": "it exceeds its memory limit"}'
    except BaseException as error:  # a panic in tokenizers is not an Exception
        said = " ".join(str(error).split())[:500]
        return json.dumps({"error": said or type(error).__name__, "kind": type(error).__name__}).encode()


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def render(template: str, values: dict[str, Any], letters: int) -> dict[str, Any]:
    """Render a chat template to a text of at most ``letters`` characters."""
    parts, length = [], 0
    for part in compile_template(template).generate(**values):
        length += len(part)
        if length > letters:
            raise ValueError(f"its output exceeds {letters:,} characters")
        parts.append(part)
    return {"text": "".join(parts)}


@lru_cache(maxsize=8)
def compile_template(template: str) -> Template:
    """Compile a template, cached because that takes longer than rendering it."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """``{% generation %}``, which marks the model's part of a conversation for training; its body is rendered."""

        tags = {"generation"}  # noqa: RUF012  (jinja2 declares it a plain class attribute)

        def parse(self, parser: Any) -> nodes.Node:
            """Parse the block to a scope."""
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def refuse(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    # The sandbox of transformers.utils.chat_template_utils.
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def open_tokenizer(text: str) -> dict[str, Any]:
    """Open a tokenizer.json; ``ids`` are those that the tokenizers package assigns to its added tokens."""
    import tokenizers

    codec = tokenizers.Tokenizer.from_str(text)
    codec.no_truncation()
    codec.no_padding()
    _held["encode"] = lambda text, special: codec.encode(text, add_special_tokens=special).ids
    return {"ids": {token.content: i for i, token in codec.get_added_tokens_decoder().items()}}


def open_folder(folder: str, generic: bool = False) -> dict[str, Any]:
    """Open a folder's tokenizer with transformers; ``text`` is its tokenizer.json, ``name`` the reader.

    ``generic``: use the class that takes tokenizer.json as is, whatever class the folder names.
    """
    logging.disable(logging.WARNING)
    import transformers

    reader = transformers.PreTrainedTokenizerFast if generic else transformers.AutoTokenizer
    codec = reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # verbose=False: no warning for texts longer than the context.
    _held["encode"] = lambda text, special: codec(text, add_special_tokens=special, verbose=False)["input_ids"]
    _held["folder"] = (folder, generic)
    name = f"transformers {transformers.__version__}'s {type(codec).__name__}"
    return {"text": codec.backend_tokenizer.to_str(), "name": name}


def open_sentencepiece(file: str, marks: dict[str, int], legacy: bool) -> dict[str, Any]:
    """Open a tokenizer.model with sentencepiece itself.

    ``marks`` are special tokens, at which text is split first. ``legacy``: prepend a space to every part; otherwise,
    since transformers' pull request 24565, only to the first part, if it does not begin with one.
    """
    import sentencepiece

    with open(file, "rb") as model:  # noqa: PTH123 - avoids importing pathlib
        data = model.read()
    first = sentencepiece.SentencePieceProcessor(model_proto=data)
    # Appended protobuf fields are merged: normalizer_spec (3) with add_dummy_prefix (3) false.
    others = first if legacy else sentencepiece.SentencePieceProcessor(model_proto=data + b"\x1a\x02\x18\x00")
    cut = re.compile("|".join(re.escape(m) for m in sorted(marks, key=len, reverse=True)) or r"(?!)")

    def encode(text: str, special: bool) -> list[int]:  # noqa: ARG001 - sentencepiece adds none around a text
        ids, at = [], 0
        for match in (*cut.finditer(text), None):
            part = text[at : match.start() if match else len(text)]
            if part:
                spaced = legacy or (not at and not part.startswith((" ", "\u2581")))
                ids += (first if spaced else others).encode(part)
            if match:
                ids.append(marks[match.group()])
                at = match.end()
        return ids

    _held["encode"] = encode
    return {"name": f"sentencepiece {sentencepiece.__version__}"}


def encode(text: str, special: bool) -> dict[str, Any]:
    """Token ids of a text by the open tokenizer."""
    return {"ids": list(_held["encode"](text, special))}


def encode_in(folder: str, text: str, special: bool, generic: bool = False) -> dict[str, Any]:
    """Token ids of a text by a folder's tokenizer, which is opened unless it already is."""
    if _held.get("folder") != (folder, generic):
        open_folder(folder, generic)
    return encode(text, special)


_WORK: dict[str, Callable[..., dict[str, Any]]] = {
    "render": render,
    "open_tokenizer": open_tokenizer,
    "open_folder": open_folder,
    "open_sentencepiece": open_sentencepiece,
    "encode": encode,
    "encode_in": encode_in,
}

if __name__ == "__main__":
    main(int(sys.argv[1]))
