"""The library names parameters; the command line says which of its flags these are."""

from __future__ import annotations

import pytest

from edgekit.cli import run
from edgekit.cli.flags import name_flags
from edgekit.testing import tiny_checkpoint

BUILD = ["build", "m", "-o", "out"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise `size_mb`", "raise --size-mb"),
        ("`bits` and `size_mb`", "--bits and --size-mb"),
        ("fewer bits (`precision=int4`)", "fewer bits (--precision int4)"),
        ("without the check: `emulate=False`", "without the check: --no-emulate"),
        ("with `emulate=True`", "with --emulate"),
        ("without `mlpackage`", "without --mlpackage"),
        ("`mlpackage=False`", "`mlpackage=False`"),
        ("the folder `out`", "the folder --out"),
        ("see `edgekit targets list`", "see `edgekit targets list`"),
        ("`masked` has no flag", "`masked` has no flag"),
        ("nothing", "nothing"),
    ],
)
def test_parameters_become_the_flags_of_the_command(text: str, said: str) -> None:
    assert name_flags(text, BUILD) == said


def test_a_command_without_the_flag_keeps_the_parameter_s_name() -> None:
    assert name_flags("raise `size_mb` or `precision`", ["targets", "check", "m"]) == "raise `size_mb` or --precision"


def test_a_user_reads_flags(tmp_path, capsys) -> None:
    model = str(tiny_checkpoint(tmp_path / "m"))
    assert run(["build", model, "-o", str(tmp_path / "out"), "--bits", "2"]) == 1
    assert "hint: raise --bits\n" in capsys.readouterr().err
    assert run(["build", model, "-o", str(tmp_path / "out"), "--bits", "6", "--size-mb", "5"]) == 1
    assert "error: --size-mb and --bits cannot be used together\n" in capsys.readouterr().err
