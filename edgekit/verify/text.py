"""Whether a bundle tokenizes text and formats chats as its source does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edgekit.errors import EdgekitError
from edgekit.run import Tokenizer
from edgekit.source import TOKENIZER_EDGE_CASES, source_readers
from edgekit.types import Check

if TYPE_CHECKING:
    from edgekit.types import Bundle, Checkpoint

NO_SOURCE = "the source checkpoint is not available to compare with"
PASS_SOURCE = "pass the checkpoint that it was built from as `source`"
REBUILD = "run `edgekit build` again"


def check_text(bundle: Bundle, checkpoint: Checkpoint | None) -> tuple[Check, Check]:
    """Compare tokenizer and chat template with the source's."""
    if checkpoint is None:
        return Check("tokenizer", "skip", NO_SOURCE, PASS_SOURCE), Check(
            "chat template", "skip", NO_SOURCE, PASS_SOURCE
        )
    return check_tokenizer(bundle, checkpoint), _check_template(bundle, checkpoint)


def check_tokenizer(bundle: Bundle, checkpoint: Checkpoint) -> Check:
    """Compare the bundle's tokens with those of every reader of the source."""
    try:
        ours, readers = Tokenizer.of(bundle).encode, source_readers(checkpoint)
    except (EdgekitError, OSError, ValueError) as error:
        return Check("tokenizer", "fail", str(error), "")
    rows = bundle.manifest.spec.vocab_size
    wrong = {}
    for reader in readers:
        pairs = [(text, ours(text), reader.encode(text)) for text in TOKENIZER_EDGE_CASES]
        # Tokens without a row in the embedding do not count.
        wrong[reader.name] = [text for text, mine, its in pairs if mine != its and max(its, default=0) < rows]
    trusted = readers[0].name
    count = len(TOKENIZER_EDGE_CASES)
    told = "; ".join(
        f"{name} splits {len(texts)} of {count} test strings differently, first {texts[0][:40]!r}"
        for name, texts in wrong.items()
        if texts
    )
    if not told:
        return Check("tokenizer", "pass", f"same tokens as the source for {count} test strings")
    if not wrong[trusted]:
        detail = f"agrees with {trusted}, unlike the source's own library: {told}"
        return Check("tokenizer", "pass", detail)
    if not wrong[readers[-1].name]:
        return Check("tokenizer", "pass", f"agrees with {readers[-1].name}, unlike the source's files: {told}")
    return Check("tokenizer", "fail", told, _tokenizer_hint(bundle, checkpoint))


def _tokenizer_hint(bundle: Bundle, checkpoint: Checkpoint) -> str:
    """Suggest a rebuild only if it would write another tokenizer.json."""
    made = checkpoint.file("tokenizer.json") or b"{}"
    if json.loads(made) != json.loads((bundle.path / "tokenizer.json").read_bytes()):
        return REBUILD
    return "compare the source's tokenizer files with those on the model's page; a rebuild would not change them"


def _check_template(bundle: Bundle, checkpoint: Checkpoint) -> Check:
    name = "chat_template.jinja"
    theirs, file = checkpoint.file(name), bundle.path / name
    ours = file.read_bytes() if file.is_file() else None
    if ours != theirs:
        return Check("chat template", "fail", f"{name} differs from the source's", REBUILD)
    return Check(
        "chat template", "pass", "none, as in the source" if ours is None else f"{len(ours)} bytes, as in the source"
    )
