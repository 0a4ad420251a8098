import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgekit import words
from edgekit.errors import EdgekitError
from edgekit.estimate.sizes import bundle_parts
from edgekit.report import write_report
from edgekit.types import Bundle, Energy, Series
from tests.made import bundle, measurement

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects text, ids and everything that could make a request."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.scripts = 0
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                self.references.append(value or "")
        self.scripts += tag in ("script", "iframe", "link", "object", "embed")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\u00a0", " ").split())


def render(tmp_path: Path, *bundles: Bundle) -> tuple[str, Page]:
    html = write_report(bundles, tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return html, Page(html)


def test_page_is_one_valid_file_that_asks_the_network_for_nothing(tmp_path):
    html, page = render(tmp_path, bundle("int4"), bundle("int8"))
    assert html.startswith("<!doctype html>")
    assert page.scripts == 0
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    assert "prefers-color-scheme: dark" in html
    assert "@media print" in html


def test_drawings_take_every_colour_from_the_page(tmp_path):
    html, _ = render(tmp_path, bundle("int4"), bundle("int8"))
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 3
    for drawing in drawings:
        assert "var(--hue0)" in drawing
        assert "var(--hue1)" in drawing
        assert not re.search(r"#[0-9a-fA-F]{6}\b", drawing)


def test_numbers_are_the_bundles_own(tmp_path):
    made = bundle("int4")
    _, page = render(tmp_path, made)
    m = made.manifest
    q, latency = m.quality, m.latency
    assert q
    assert latency
    decode, prompt, tpot = (latency.get(name) for name in ("tg128@0", "pp512", "tpot@0"))
    assert decode
    assert prompt
    assert tpot
    for expected in (
        words.size(m.bytes),
        f"{m.bits_per_weight:.2f}",
        words.number(q.kld_mean.value),
        f"{words.number(q.kld_mean.low)} to {words.number(q.kld_mean.high)}",
        words.percent(q.top1.value),
        f"{q.ppl_ratio.value:.4f}",
        f"{words.count(q.tokens)} in windows of {q.window}",
        q.reference,
        f"{words.number(decode.mean)} tok/s",
        f"± {words.number(decode.sd, 2)}, n = {decode.n}",
        f"{words.number(prompt.mean)} tok/s",
        f"p50 {words.seconds(tpot.percentile(50))}, p95 {words.seconds(tpot.percentile(95))}, n = {tpot.n}",
        words.size(latency.peak_rss_bytes),
        "MBU 38.0 %",
        "MFU 41.0 %",
        made.sha256[:16],
        "unknown",
    ):
        assert expected in page.text, expected


def test_parts_add_up_and_are_shown(tmp_path):
    made = bundle("int8")
    parts = bundle_parts(made.manifest)
    assert sum(part.bytes for part in parts) == made.manifest.bytes
    assert sum(part.parameters for part in parts) == made.manifest.parameters
    _, page = render(tmp_path, made)
    for part in parts:
        assert f"{part.part} {words.size(part.bytes)}" in page.text


def test_every_matrix_has_its_cell(tmp_path):
    made = bundle("int4")
    html, _ = render(tmp_path, made)
    for tensor in made.manifest.tensors:
        if ".layers." in tensor.name and len(tensor.shape) == 2:
            bits = 8 * tensor.bytes / (tensor.shape[0] * tensor.shape[1])
            assert f'title="{tensor.name}: {bits:.2f} bits per weight, error {words.number(tensor.error)}"' in html


def test_what_was_not_measured_is_said_and_never_zero(tmp_path):
    html, page = render(tmp_path, bundle("int4", measured=False))
    assert page.text.count("not measured") >= 10
    assert "<svg" not in html
    assert "edgekit verify BUNDLE --record" in page.text
    assert " and decodes " not in page.text
    for fact in ("KL divergence, nats", "decode, tokens per second", "time to first token", "energy per token"):
        assert f"{fact} not measured" in page.text


def test_measured_and_unmeasured_bundles_share_a_page(tmp_path):
    html, page = render(tmp_path, bundle("int4"), bundle("int8", measured=False))
    assert html.count("<svg") == 3
    assert "decode, tokens per second not measured" in page.text


@pytest.mark.parametrize(
    ("energy", "said"),
    [
        (Energy("none", reason="RAPL package-0: may not be read"), "none RAPL package-0: may not be read"),
        (Energy("measured", "RAPL", 120.0, 80.0, tokens=400), "0.2 J/token measured net, RAPL"),
        (Energy("estimated", "TDP", 120.0, 80.0, tokens=400), "0.2 J/token estimated net, TDP"),
    ],
)
def test_energy_says_how_it_was_obtained(tmp_path, energy, said):
    made = bundle("int4")
    made = replace(made, manifest=replace(made.manifest, latency=measurement(50, "int4", energy)))
    _, page = render(tmp_path, made)
    assert said in page.text


def test_an_int8_ceiling_is_an_estimate(tmp_path):
    made = bundle("int4")
    latency = replace(measurement(50, "int4"), gemm_factor=4.0)
    _, page = render(tmp_path, replace(made, manifest=replace(made.manifest, latency=latency)))
    assert "GFLOP/s estimated" in page.text
    assert "times 4 for int8" in page.text


def test_hostile_names_stay_text(tmp_path):
    name = "<script>alert('x')</script>&\"$\\frac{"
    html, page = render(tmp_path, bundle("int4", name=name), bundle("int4", name=name, path="demo/<b>$x$"))
    assert "<script" not in html
    assert "<b>$x$" not in html
    assert "alert('x')" in page.text
    assert "INT4 <b>$x$" in page.text


def test_two_bundles_of_one_precision_are_told_apart(tmp_path):
    _, page = render(tmp_path, bundle("int4", path="a/first"), bundle("int4", path="a/second"))
    assert "INT4 first" in page.text
    assert "INT4 second" in page.text


def test_one_sample_and_equal_errors_do_no_harm(tmp_path):
    made = bundle("int4")
    latency = measurement(50, "int4")
    single = replace(latency, series=tuple(Series(s.name, s.unit, s.samples[:1]) for s in latency.series))
    same = tuple(replace(t, error=0.1 if t.error else None) for t in made.manifest.tensors)
    _, page = render(tmp_path, replace(made, manifest=replace(made.manifest, latency=single, tensors=same)))
    assert "n = 1" in page.text


def test_same_bundles_give_the_same_bytes(tmp_path):
    first, second = (write_report([bundle("int4")], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_no_bundle_is_an_error(tmp_path):
    with pytest.raises(EdgekitError, match="at least one bundle"):
        write_report([], tmp_path / "report.html")


def test_a_page_is_not_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "page.html").symlink_to(victim)
    write_report([bundle("int4")], tmp_path / "page.html")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "page.html").is_symlink()
