"""Lines of learn.jsonl as a table: what was reached, of what the same bytes hold without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.peers.tables import MB, lay_out

if TYPE_CHECKING:
    from collections.abc import Iterable

Line = dict[str, Any]


def newest(lines: Iterable[Line]) -> list[Line]:
    """The last line of each bundle's name, data and reference, in the order of their first appearance."""
    found: dict[tuple[str, ...], Line] = {}
    for line in lines:
        if "qualities" in line:
            found[line["name"], trained_on(line), line["reference_sha256"], *_texts(line)] = line
    return list(found.values())


def trained_on(line: Line) -> str:
    """The sources of the text that weights were fitted to; "" without data."""
    sources = line["data"]["sources"] if line["data"] else ()
    return ", ".join(source["name"] for source in sources)


def without_data(line: Line, quality: dict[str, Any], lines: Iterable[Line]) -> dict[str, Any] | None:
    """The quality of the data-free bundle of a line's recipe, on the same text and reference."""
    for other in reversed(list(lines)):
        same = all(other[key] == line[key] for key in ("recipe", "reference_sha256"))
        if other["row"] == "data-free" and same:
            for candidate in other["qualities"]:
                if all(candidate[key] == quality[key] for key in ("text_sha256", "window", "tokens", "reference")):
                    return dict(candidate)
    return None


def quality_table(lines: Iterable[Line]) -> str:
    """A row for each bundle and text."""
    kept, rows = newest(lines), []
    for line in kept:
        for quality in line["qualities"]:
            free = without_data(line, quality, kept)
            kld, top1 = quality["kld_mean"], quality["top1"]
            rows.append(
                [
                    " on ".join(filter(None, [line["name"], trained_on(line)])),
                    f"{line['bytes'] / MB:.2f} MB",
                    quality["text"],
                    f"{free['kld_mean']['value']:.4f}" if free else "-",
                    f"{kld['value']:.4f} [{kld['low']:.4f}, {kld['high']:.4f}]",
                    f"{kld['value'] / free['kld_mean']['value']:.2f}x" if free else "-",
                    f"{100 * top1['value']:.1f} %",
                    _words(line["lambada"]),
                ]
            )
    return lay_out(["what", "size", "text", "data-free", "reached: KLD", "ratio", "top-1", "last words"], rows)


def _words(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    right = found["right"]
    return f"{100 * right['value']:.1f} % [{100 * right['low']:.1f}, {100 * right['high']:.1f}] of {found['asked']}"


def _texts(line: Line) -> tuple[str, ...]:
    return tuple(f"{q['text_sha256']} {q['window']} {q['tokens']}" for q in line["qualities"])
