"""What the documents show of the records: every figure is used, a changed record changes it, a bad one is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks.page import PLACEHOLDER, REGION, RecordError, figures, fill_placeholders, fill_regions
from benchmarks.results import FOLDER

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """A copy of the records that may be spoilt."""
    return shutil.copytree(FOLDER, tmp_path / "benchmarks" / "results")


def rewrite(path: Path, change) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_figure_is_shown_somewhere():
    template = (ROOT / "docs" / "benchmarks.md.in").read_text(encoding="utf-8")
    filled = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/learn.md"))
    shown = set(PLACEHOLDER.findall(template)) | {name for _, name, _ in REGION.findall(filled)}
    assert shown == set(figures())


def test_a_number_is_the_record_s(folder):
    def change(line):
        if line["what"] == "speed" and line["contender"] == "edgekit-small" and line["workload"] == "pp512":
            line["seconds"] = 512 / 1777

    rewrite(folder / "AMX" / "peers.jsonl", change)
    changed = figures(folder)
    assert "1777 [1777, 1777]" in changed["peers.table"]
    assert re.search(r"^\| edgekit small +\|[^|]*\|[^|]*\| 1777 ", changed["peers"], flags=re.MULTILINE)
    before = figures()
    assert {name for name in before if before[name] != changed[name]} == {"peers", "peers.table", "peers.ratios"}


def test_the_newest_run_counts(folder):
    path = folder / "AMX" / "serve_load.jsonl"
    newer = json.loads(path.read_text())
    newer["clients"] = 77
    with path.open("a") as file:
        file.write(json.dumps(newer) + "\n")
    assert figures(folder)["serve.clients"] == "77"


@pytest.mark.parametrize(
    "name",
    [
        "AMX/peers.jsonl",
        "AVX512-VNNI/quality.jsonl",
        "AMX/operators.jsonl",
        "npu.jsonl",
        "learn.jsonl",
        "guarantee.jsonl",
    ],
)
def test_a_missing_record_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(RecordError, match=f"results/{name} is missing"):
        figures(folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("AMX/peers.jsonl", "contender"),
        ("AMX/straight_line.jsonl", "quality"),
        ("AMX/large.jsonl", "peak_rss_bytes"),
        ("AMX/serve_load.jsonl", "load"),
        ("AMX/routing.jsonl", "duels"),
        ("npu.jsonl", "decode_bytes"),
        ("learn.jsonl", "recipe"),
        ("guarantee.jsonl", "rows"),
    ],
)
def test_a_record_of_another_form_is_named(folder, name, key):
    rewrite(folder / name, lambda line: line.pop(key, None))
    with pytest.raises(RecordError, match=f"results/{name} has another form .*'{key}'"):
        figures(folder)


def test_a_file_that_is_no_json_is_named(folder):
    (folder / "npu.jsonl").write_text("half a li")
    with pytest.raises(RecordError, match=r"results/npu\.jsonl has another form .*JSONDecodeError"):
        figures(folder)


def test_a_row_that_is_gone_is_named(folder):
    rewrite(folder / "AMX" / "large.jsonl", lambda line: line.update(shape="7B") if line["shape"] == "8B" else None)
    with pytest.raises(RecordError, match=r"results/AMX/large\.jsonl: no line has tool = 'edgekit', shape = '8B'"):
        figures(folder)


def test_speed_is_not_compared_at_worse_quality(folder):
    def change(line):
        if line["what"] == "quality" and line["contender"] == "edgekit-small":
            line["quality"]["kld_mean"]["value"] = 0.5

    rewrite(folder / "AMX" / "peers.jsonl", change)
    with pytest.raises(RecordError, match="edgekit-small is farther from FP32 than genai"):
        figures(folder)


def test_what_the_page_says_of_every_npu_row_must_hold(folder):
    rewrite(folder / "npu.jsonl", lambda line: line.update(nodes_off=1))
    with pytest.raises(RecordError, match="all nodes run on the NPU"):
        figures(folder)


def test_placeholders_and_regions_are_filled():
    assert fill_placeholders("a {{ x.y }} b {{z}}", {"x.y": "1", "z": "2"}) == "a 1 b 2"
    document = "before\n<!-- generated: x -->\nold\n<!-- end -->\nafter\n"
    filled = fill_regions(document, {"x": "| new |"})
    assert filled == "before\n<!-- generated: x -->\n\n| new |\n\n<!-- end -->\nafter\n"
    assert fill_regions(filled, {"x": "| new |"}) == filled


def test_a_name_that_no_figure_has_is_told():
    with pytest.raises(RecordError, match="no figure is called 'spede'; there are speed"):
        fill_placeholders("{{ spede }}", {"speed": "1"})
    with pytest.raises(RecordError, match="no figure is called 'spede'"):
        fill_regions("<!-- generated: spede -->\n<!-- end -->", {"speed": "1"})
