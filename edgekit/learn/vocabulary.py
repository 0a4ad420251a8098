"""Whether two models speak of the same tokens: a student learns from logits only if ids mean the same in both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import LearnError
from edgekit.strangers.tokenizer_file import TokenizerForm, check_tokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.types import Checkpoint

_HINT = "use a student of the teacher's family and tokenizer, or cut the teacher itself: `keep`, `layers` or `size_mb`"


def require_same_vocabulary(teacher: Checkpoint, student: Checkpoint) -> None:
    """Refuse a student whose tokens are not the teacher's.

    A student without tokenizer files is taken to have the teacher's if its table has as many rows.

    Raises:
        LearnError: with the first difference that was found.
    """
    name = student.provenance.id
    if student.spec.vocab_size != teacher.spec.vocab_size:
        raise LearnError(
            f"{name} has another vocabulary: {student.spec.vocab_size} rows, the teacher {teacher.spec.vocab_size}",
            _HINT,
        )
    theirs = student.file("tokenizer.json")
    ours = teacher.file("tokenizer.json")
    if theirs is None or ours is None:
        return
    reason = _difference(_read(ours, teacher), _read(theirs, student))
    if reason:
        raise LearnError(f"{name} has another vocabulary: {reason}", _HINT)


def _read(data: bytes, checkpoint: Checkpoint) -> TokenizerForm:
    return check_tokenizer(data, f"{checkpoint.provenance.id}: tokenizer.json", error=LearnError)


def _difference(ours: TokenizerForm, theirs: TokenizerForm) -> str:
    """The first difference, "" for none."""
    one, other = _ids(ours), _ids(theirs)
    for i in sorted(one.keys() | other.keys()):
        if one.get(i) != other.get(i):
            return f"token {i} is {_shown(other.get(i))}, the teacher's is {_shown(one.get(i))}"
    for at, (mine, its) in enumerate(zip(_merges(ours), _merges(theirs), strict=False)):
        if mine != its:
            return f"merge {at} is {_shown(' '.join(its))}, the teacher's is {_shown(' '.join(mine))}"
    if len(_merges(ours)) != len(_merges(theirs)):
        return f"{len(_merges(theirs))} merges, the teacher {len(_merges(ours))}"
    return ""


def _ids(form: TokenizerForm) -> dict[int, str]:
    vocabulary: Any = form.document["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        found = {i: str(piece[0]) for i, piece in enumerate(vocabulary)}
    else:
        found = {int(i): str(token) for token, i in vocabulary.items()}
    return found | {i: token for token, i in form.added.items()}


def _merges(form: TokenizerForm) -> list[tuple[str, ...]]:
    """Merges, which stand as ``"a b"`` in older files and as ``["a", "b"]`` in newer ones."""
    model: Mapping[str, Any] = form.document["model"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges") or ()]


def _shown(token: str | None) -> str:
    return "missing" if token is None else repr(token[:40])
