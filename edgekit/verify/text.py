"""Whether a bundle cuts text into tokens and writes conversations as its source does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.run import Tokenizer
from edgekit.source import TOKENIZER_EDGE_CASES, source_readers
from edgekit.types import Check

if TYPE_CHECKING:
    from edgekit.types import Bundle, Checkpoint

NAME_SOURCE = "name the checkpoint that it was built from: --source"
REBUILD = "build it again with `edgekit build`"


def check_text(bundle: Bundle, checkpoint: Checkpoint | None) -> tuple[Check, Check]:
    """Tokenizer and chat template against the source's own."""
    if checkpoint is None:
        reason = "the source is not here to compare with"
        return Check("tokenizer", "skip", reason, NAME_SOURCE), Check("chat template", "skip", reason, NAME_SOURCE)
    return check_tokenizer(bundle, checkpoint), _check_template(bundle, checkpoint)


def check_tokenizer(bundle: Bundle, checkpoint: Checkpoint) -> Check:
    """Whether the bundle splits text as somebody reads the source, and who reads it differently."""
    try:
        ours, readers = Tokenizer.of(bundle).encode, source_readers(checkpoint)
    except (EdgekitError, OSError, ValueError) as error:
        return Check("tokenizer", "fail", str(error), "")
    rows = bundle.manifest.spec.vocab_size
    wrong = {}
    for reader in readers:
        pairs = [(text, ours(text), reader.encode(text)) for text in TOKENIZER_EDGE_CASES]
        # A token without a row in the embedding is no token of the model.
        wrong[reader.name] = [text for text, mine, its in pairs if mine != its and max(its, default=0) < rows]
    trusted = readers[0].name
    count = len(TOKENIZER_EDGE_CASES)
    told = "; ".join(
        f"{name} splits {len(texts)} of {count} awkward strings differently, first {texts[0][:40]!r}"
        for name, texts in wrong.items()
        if texts
    )
    if not told:
        return Check("tokenizer", "pass", f"{len(TOKENIZER_EDGE_CASES)} awkward strings give the source's own tokens")
    if not wrong[trusted]:
        detail = f"agrees with {trusted}; the source's own library reads this differently: {told}"
        return Check("tokenizer", "pass", detail)
    if not wrong[readers[-1].name]:
        return Check("tokenizer", "pass", f"agrees with {readers[-1].name}; the files alone say otherwise: {told}")
    return Check("tokenizer", "fail", told, _tokenizer_hint(bundle, checkpoint))


def _tokenizer_hint(bundle: Bundle, checkpoint: Checkpoint) -> str:
    """Building again helps where it would write another tokenizer.json than the bundle's."""
    made = checkpoint.file("tokenizer.json") or b"{}"
    if json.loads(made) != json.loads((bundle.path / "tokenizer.json").read_bytes()):
        return REBUILD
    return "building again gives the same; compare the files of the source's tokenizer with those of the model's page"


def _check_template(bundle: Bundle, checkpoint: Checkpoint) -> Check:
    name = "chat_template.jinja"
    theirs, file = checkpoint.file(name), bundle.path / name
    ours = file.read_bytes() if file.is_file() else None
    if ours != theirs:
        return Check("chat template", "fail", f"{name} is not the source's", REBUILD)
    return Check("chat template", "pass", "none, as in the source" if ours is None else f"{len(ours)} bytes, equal")
