"""One hostile command line and the files it meets, as data: it can be made up, judged, kept in the corpus and replayed.

A case starts from valid inputs (``seeds.py``) and changes them by steps. Steps that name a place in a JSON document are
applied to the document as it is today, so a kept case goes on testing what it was kept for when the format grows.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.record import to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Do = Literal[
    *("write", "splice", "truncate", "set", "drop", "twice", "rename"),
    *("remove", "link", "fifo", "folder", "mode", "reseal"),
]
_STAND_IN = "\u2060here\u2060"
_PLAIN, _PACKED = "text:", "zlib:"


@dataclass(frozen=True)
class Step:
    """One change to a file of a case. ``path`` is relative to the case's folder.

    ========== =================================================================================
    write      the whole file: ``text`` as ``pack`` makes it
    splice     ``text`` takes the place of ``length`` bytes at ``at``
    truncate   to ``length`` bytes; longer than it is makes a hole
    set        the value at ``where`` in a JSON document becomes ``text``, which need not be JSON
    drop       the key or item at ``where`` goes
    twice      the key at ``where`` stands once more, with the value ``text``
    rename     the key at ``where`` is called ``text``
    remove     the file goes
    link       a symbolic link to ``text``; ``fifo``, ``folder``: one of these in the file's place
    mode       its permissions become ``length``
    reseal     ``path`` is a bundle: its manifest says the sizes and hashes that its files have now
    ========== =================================================================================
    """

    do: Do
    path: str
    text: str = ""
    where: tuple[str | int, ...] = ()
    at: int = 0
    length: int = 0


@dataclass(frozen=True)
class Case:
    """A command line with its files. The command runs in the case's folder and may write under ``out/`` alone.

    Args:
        name: ``format: what was done``.
        command: the words after ``edgekit``.
        seeds: names of valid inputs (``seeds.py``), each copied to the folder of that name.
        steps: what is changed, in order.
        refused: done is wrong: the input cannot be accepted by anybody.
        stdin: what is piped in, None for a closed stdin.
        environment: variables to set.
        writes: what the command may write besides ``out/``, as ``bundle/edgekit.json``; patterns as fnmatch's.
    """

    name: str
    command: tuple[str, ...]
    seeds: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    refused: bool = False
    stdin: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    writes: tuple[str, ...] = ()

    def arrange(self, folder: Path, seed: Callable[[str], Path]) -> None:
        """Write the files into ``folder``, which is empty. ``seed`` gives the folder of a valid input."""
        for name in self.seeds:
            shutil.copytree(seed(name), folder / name, symlinks=True)
        (folder / "out").mkdir(exist_ok=True)
        for step in self.steps:
            _DO[step.do](folder / step.path, step)

    def text(self) -> str:
        """As one JSON document."""
        # Half a character has no UTF-8; as an escape it has JSON.
        return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", to_json(self, indent=1)) + "\n"

    @classmethod
    def read(cls, text: str) -> Case:
        """What ``text`` wrote."""
        # Not by record.from_json: what a case holds is beyond every range.
        said = json.loads(text)
        steps = tuple(Step(**{**step, "where": tuple(step["where"])}) for step in said.pop("steps"))
        pairs = tuple((name, value) for name, value in said.pop("environment"))
        lists = {key: tuple(said.pop(key)) for key in ("command", "seeds", "writes")}
        return cls(**said, **lists, steps=steps, environment=pairs)


def pack(data: bytes | str) -> str:
    """The content of a file for ``Step.text``: readable where it is short text, else compressed."""
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    if len(data) < 20_000:
        try:
            return _PLAIN + data.decode()
        except UnicodeDecodeError:
            pass
    return _PACKED + base64.b64encode(zlib.compress(data, 9)).decode()


def unpack(text: str) -> bytes:
    """What ``pack`` packed."""
    if text.startswith(_PLAIN):
        return text.removeprefix(_PLAIN).encode()
    return zlib.decompress(base64.b64decode(text.removeprefix(_PACKED)))


def write(path: str, data: bytes | str) -> Step:
    """The step that writes a whole file."""
    return Step("write", path, pack(data))


def put(document: Any, where: Sequence[str | int], raw: str) -> str:
    """The document as JSON text with ``raw`` at a place; text that is no JSON goes in as it is."""
    if not where:
        return raw
    _parent(document, where)[where[-1]] = _STAND_IN
    return json.dumps(document, indent=1, ensure_ascii=False).replace(json.dumps(_STAND_IN, ensure_ascii=False), raw)


def _parent(document: Any, where: Sequence[str | int]) -> Any:
    for key in where[:-1]:
        document = document[key]
    return document


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _save(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


def _raw(step: Step) -> str:
    return unpack(step.text).decode() if step.text.startswith(_PACKED) else step.text


def _write(path: Path, step: Step) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(unpack(step.text))


def _splice(path: Path, step: Step) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: step.at] + unpack(step.text) + data[step.at + step.length :])


def _truncate(path: Path, step: Step) -> None:
    os.truncate(path, step.length)


def _set(path: Path, step: Step) -> None:
    _save(path, put(_load(path), step.where, _raw(step)))


def _drop(path: Path, step: Step) -> None:
    document = _load(path)
    del _parent(document, step.where)[step.where[-1]]
    _save(path, json.dumps(document, indent=1))


def _twice(path: Path, step: Step) -> None:
    document = _load(path)
    old = json.dumps(_parent(document, step.where)[step.where[-1]])
    _save(path, put(document, step.where, f"{old}, {json.dumps(step.where[-1])}: {_raw(step)}"))


def _rename(path: Path, step: Step) -> None:
    document = _load(path)
    parent = _parent(document, step.where)
    parent[_raw(step)] = parent.pop(step.where[-1])
    _save(path, json.dumps(document, indent=1))


def _remove(path: Path, _: Step | None = None) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(path: Path, step: Step) -> None:
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(step.text)


def _fifo(path: Path, _: Step) -> None:
    _remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def _folder(path: Path, _: Step) -> None:
    _remove(path)
    path.mkdir(parents=True)


def _mode(path: Path, step: Step) -> None:
    path.chmod(step.length)


def _reseal(path: Path, _: Step) -> None:
    manifest = path / "edgekit.json"
    document = _load(manifest)
    for entry in document["files"]:
        file = path / entry["path"]
        # A link may lead to what is a file and cannot be read, such as a process's memory.
        if file.is_file() and not file.is_symlink():
            data = file.read_bytes()
            entry["bytes"], entry["sha256"] = len(data), sha256(data).hexdigest()
    _save(manifest, json.dumps(document, indent=1))


_DO: dict[str, Callable[[Path, Step], None]] = {
    "write": _write, "splice": _splice, "truncate": _truncate, "set": _set, "drop": _drop, "twice": _twice,
    "rename": _rename, "remove": _remove, "link": _link, "fifo": _fifo, "folder": _folder, "mode": _mode,
    "reseal": _reseal,
}  # fmt: skip
