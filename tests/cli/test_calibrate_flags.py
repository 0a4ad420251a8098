"""--calibrate with a value and without, and --skip-bad."""

from __future__ import annotations

import json

import pytest

from edgekit.cli import run
from edgekit.cli.commands import _complete
from edgekit.testing import tiny_checkpoint


@pytest.mark.parametrize(
    ("args", "complete"),
    [
        (["m", "--calibrate", "-o", "out"], ["m", "--calibrate", "packaged", "-o", "out"]),
        (["m", "-o", "out", "--calibrate"], ["m", "-o", "out", "--calibrate", "packaged"]),
        (["m", "--calibrate", "a.txt", "-o", "out"], ["m", "--calibrate", "a.txt", "-o", "out"]),
        (["m", "--calibrate=a.txt", "-o", "out"], ["m", "--calibrate=a.txt", "-o", "out"]),
    ],
)
def test_without_a_value_it_is_the_packaged_text(args, complete):
    assert _complete(args) == complete


def test_a_pattern_that_the_shell_expanded_is_refused(capsys):
    assert run(["build", "m", "--calibrate", "notes/a.txt", "notes/b.txt", "-o", "out"]) == 1
    said = capsys.readouterr().err
    assert "unexpected extra argument(s) (notes/b.txt)" in said
    assert "quote a pattern" in said
    assert "--calibrate 'notes/*.txt'" in said


def test_a_bad_line_names_its_flag_and_with_it_is_counted(tmp_path, capsys):
    model, out = str(tiny_checkpoint(tmp_path / "m", num_hidden_layers=1)), tmp_path / "out"
    lines = [json.dumps({"text": "The quick brown fox jumps over the lazy dog. " * 40})] * 20
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "oops"]))
    command = ["build", model, "--calibrate", str(tmp_path / "a.jsonl"), "-o", str(out)]
    assert run(command) == 1
    said = capsys.readouterr().err
    assert "a.jsonl, line 21 is not valid JSON" in said
    assert "--skip-bad" in said
    assert not out.exists()
    assert run([*command, "--skip-bad"]) == 0
    assert "a.jsonl: left out 1 bad line" in capsys.readouterr().err
    (source,) = json.loads((out / "edgekit.json").read_text())["calibrated"]["sources"]
    assert (source["name"], source["bad_lines"]) == ("a.jsonl", 1)


def test_skipping_without_text_is_refused(capsys):
    assert run(["build", "m", "--skip-bad", "-o", "out"]) == 1
    assert "--skip-bad needs --calibrate" in capsys.readouterr().err
