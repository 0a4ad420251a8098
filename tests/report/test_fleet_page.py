"""The page of a lab: whole, self-contained, escaped, and with what a lab looks at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.lab_emulated import emulated_lab, run_emulated
from edgekit.lab.results import load_fleet
from edgekit.report.fleet import compose_fleet, write_fleet
from edgekit.types.fleet import Fleet
from tests.report.test_report import Page


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("lab")
    lab = emulated_lab(repetitions=2)
    lab = replace(
        lab, workloads=(lab.workloads[0], replace(lab.workloads[2], sustained=120.0)), bundles=lab.bundles[:2]
    )
    run_emulated(folder, lab)
    run_emulated(folder, lab, drift=0.5)
    return load_fleet(str(folder))


def test_the_page_is_whole_and_needs_nothing_else(fleet: Fleet, tmp_path: Path) -> None:
    html = write_fleet(fleet, tmp_path / "made" / "fleet.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.scripts == 0
    assert all(reference.startswith("#") for reference in page.references)
    assert len(page.ids) == len(set(page.ids))
    text = " ".join(page.words)
    for words in (
        "Broken: laptop",
        "slower",
        "pi5-a",
        "levels off" if "levels off" in text else "holds",
        "INA226 (emulated)",
        "net joules per token",
        "does not answer",
    ):
        assert words in text, words


def test_what_a_device_says_is_text(fleet: Fleet, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    devices = (replace(fleet.devices[0], model=evil, reasons=(evil,)), *fleet.devices[1:])
    results = tuple(replace(r, bundle=evil) if r.bundle == "smollm2-int4" else r for r in fleet.results)
    html = write_fleet(replace(fleet, devices=devices, results=results), tmp_path / "fleet.html").read_text()
    assert "<script" not in html
    assert Page(html).scripts == 0


def test_the_scale_of_changes_holds_every_interval(fleet: Fleet) -> None:
    page = compose_fleet(fleet)
    assert page.changed
    for row in (*page.changed, *page.noise):
        assert 0 <= row.low <= row.at <= row.high <= 100
    slower = next(row for row in page.changed if row.change.verdict == "slower")
    assert slower.high < page.one
    assert slower.text.startswith("-")


def test_a_first_night_without_meters_says_so(fleet: Fleet, tmp_path: Path) -> None:
    results = tuple(replace(r, joules=None, curve=None) for r in fleet.results)
    html = write_fleet(replace(fleet, results=results, changes=()), tmp_path / "f.html").read_text(encoding="utf-8")
    assert "no device has a meter" in html
    assert "This is the first night." in html
    assert "no workload of this lab is sustained" in html
