"""`edgekit serve` under load: benchmarks/results/AMX/serve_load.jsonl, of `python benchmarks/serve_load.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.page.records import pick, read_lines, reading

if TYPE_CHECKING:
    from pathlib import Path

WORDS = {0: "none"}


def figures(folder: Path) -> dict[str, str]:
    """Numbers of the last run with the default INT4 bundle."""
    path = folder / "AMX" / "serve_load.jsonl"
    with reading(path):
        line = pick(read_lines(path), bundle="int4")
        load, first = line["load"], line["first_token"]
        return {
            "serve.later.p50": f"{first['overhead_p50_ms']:.1f} ms",
            "serve.later.p95": f"{first['overhead_p95_ms']:.1f} ms",
            "serve.clients": str(line["clients"]),
            "serve.queue": str(line["queue"]),
            "serve.minutes": f"{line['minutes']:.0f}",
            "serve.answers": str(load["requests"]),
            **{f"serve.{name}": WORDS.get(load[name], str(load[name])) for name in ("lost", "wrong", "mixed_up")},
            "serve.turned_away": str(load["turned_away"]),
            "serve.memory.early": f"{load['rss_after_a_fifth_mb']:.0f} MB",
            "serve.memory.end": f"{load['rss_end_mb']:.0f} MB",
        }
