"""Lines of learn.jsonl as a table: what was reached, of what the same bytes hold without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.tables import MB, lay_out

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.peers.records import Run

Line = dict[str, Any]

PACKAGED = ("pydoc_data.topics", "docstrings of Python's library")
"""In the names of the sources that the packaged text consists of."""

REFERENCE = "1fa402cfaef02293e49f4953c6c4991975cc18e8f452185f5eb20cefbf5366ac"
"""sha256 of the peers' off-grid reference: SmolLM2-135M, seed 1234 (reference.py)."""


def newest(lines: Iterable[Line]) -> list[Line]:
    """The last line of each bundle's name, data, reference and texts, in the order of their first appearance."""
    found: dict[tuple[str, ...], Line] = {}
    for line in lines:
        if "qualities" in line:
            found[line["name"], trained_on(line), line["reference_sha256"], *map(protocol, line["qualities"])] = line
    return list(found.values())


def trained_on(line: Line) -> str:
    """The sources of the text that weights were fitted to; "" without data."""
    sources = line["data"]["sources"] if line["data"] else ()
    names = (s["name"] for s in sources)
    return ", ".join(dict.fromkeys("packaged" if any(p in n for p in PACKAGED) else n for n in names))


def title(line: Line) -> str:
    """What a bundle is called beside the peers."""
    return f"edgekit {line['name'].replace('int', 'INT')}"


def protocol(quality: dict[str, Any]) -> str:
    """What two qualities must have in common to be compared, besides the model in FP32."""
    return f"{quality['text_sha256']} {quality['window']} {quality['tokens']}"


def without_data(line: Line, quality: dict[str, Any], lines: Iterable[Line]) -> dict[str, Any] | None:
    """The quality of the data-free bundle of a line's recipe, on the same text and reference."""
    for other in reversed(list(lines)):
        same = all(other[key] == line[key] for key in ("recipe", "reference_sha256"))
        if other["row"] == "data-free" and same:
            for candidate in other["qualities"]:
                if protocol(candidate) == protocol(quality):
                    return dict(candidate)
    return None


def comparable(lines: list[Line], run: Run) -> list[tuple[Line, dict[str, float]]]:
    """Learned bundles, each with its KLD on the peers' text against their reference."""
    theirs = {protocol(record["quality"]) for record in run.records if record["what"] == "quality"}
    return [
        (line, quality["kld_mean"])
        for line in newest(lines)
        if line["reference_sha256"] == REFERENCE and line["row"] not in ("fp32", "data-free")
        for quality in line["qualities"]
        if protocol(quality) in theirs
    ]


def quality_table(lines: Iterable[Line]) -> str:
    """A row for each bundle and text."""
    kept = newest(lines)
    head = ["what", "size", "text", "data-free", "reached: KLD", "ratio", "top-1", "last words"]
    rows = [_row(line, quality, kept) for line in kept for quality in line["qualities"]]
    if all(line["lambada"] is None for line in kept):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return lay_out(head, rows)


def _row(line: Line, quality: dict[str, Any], kept: list[Line]) -> list[str]:
    free, kld, top1 = without_data(line, quality, kept), quality["kld_mean"], quality["top1"]
    return [
        " on ".join(filter(None, [line["name"], trained_on(line)])),
        f"{line['bytes'] / MB:.2f} MB",
        quality["text"],
        f"{free['kld_mean']['value']:.4f}" if free else "-",
        f"{kld['value']:.4f} [{kld['low']:.4f}, {kld['high']:.4f}]",
        f"{kld['value'] / free['kld_mean']['value']:.2f}x" if free else "-",
        f"{100 * top1['value']:.1f} %",
        _words(line["lambada"]),
    ]


def _words(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    right = found["right"]
    return f"{100 * right['value']:.1f} % [{100 * right['low']:.1f}, {100 * right['high']:.1f}] of {found['asked']}"
