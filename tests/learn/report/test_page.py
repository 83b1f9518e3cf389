"""Pages and figures of reports: one file that fetches nothing, with all names escaped."""

import functools
import itertools
import re
from html.parser import HTMLParser

import browser_kit
import numpy as np
import pytest

from wsa.learn.evaluation.scores import Interval
from wsa.learn.report import figures
from wsa.learn.report.document import (
    Figure,
    Film,
    Gallery,
    Picture,
    Section,
    Text,
    markdown,
    table,
)
from wsa.learn.report.page import page

HOSTILE = '<script>alert("1")</script> & $x$'


@functools.cache
def drawings():
    """A figure of each kind, with names that HTML and TeX would interpret."""
    bars = [figures.Bar(HOSTILE, 0.4, 0.1, 0.6), figures.Bar("lin_1", 0.2, style=9)]
    x = np.arange(5)
    band = np.stack([x, x - 1, x + 1]).astype(float)
    sets = itertools.product((False, True), repeat=3)
    return [
        figures.intervals(bars, "score", line=0.0),
        figures.points([1e5, 3e6], bars, "parameters", "score"),
        figures.curves([figures.Line(HOSTILE, x, x), figures.Line("b", x, *band)], "x", "y", at=2),
        figures.stacked(["a", HOSTILE], x, np.full((2, 5), 0.5), "steps"),
        figures.lattice({s: sum(s) / 3 for s in sets}, "ABC", HOSTILE),
        figures.heat_map(np.array([[1, -0.5], [np.nan, 0]]), ["a", HOSTILE], ["b", "c"], HOSTILE),
    ]


def make_section(name="one"):
    """A section with every kind of part."""
    parts = [
        Text(HOSTILE),
        table("A table", ("a", HOSTILE), [(1, None), (HOSTILE, "|")]),
        Film(HOSTILE, b"film"),
        Gallery(HOSTILE, (Picture(b"png", HOSTILE),), HOSTILE),
    ]
    parts += [Figure(f"Figure {i}", svg, HOSTILE) for i, svg in enumerate(drawings())]
    return Section(name, "A section", tuple(parts), {"judged": HOSTILE, "command": "wsa study"})


class Reader(HTMLParser):
    """Collects the elements of a page, the addresses that they refer to, and the text."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.addresses = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action")
        ]

    def handle_data(self, data):
        self.text += data


def test_a_page_fetches_nothing_and_escapes_text():
    html = page("A report", [make_section(), make_section("two")])
    reader = Reader()
    reader.feed(html)
    assert not {"script", "iframe", "object"} & set(reader.tags)
    assert all(a.startswith(("#", "data:")) for a in reader.addresses)
    assert "http" not in re.sub(r'xmlns="http://www.w3.org/2000/svg"|http-equiv', "", html)
    # In text, the heading and a cell of a table, titles, captions, notes, a fact, and in figures.
    assert reader.text.count(HOSTILE) > 2 * 16
    assert reader.tags.count("svg") == 2 * len(drawings())
    assert len(html) < 300_000


def test_figures_use_the_colors_of_the_page_and_are_reproducible():
    for svg in drawings():
        assert svg.startswith("<svg viewBox=") and "DejaVu" not in svg and "<style" not in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set(), "a color that no theme changes"
        assert "var(--ink)" in svg and not re.search(r'id="(axes|patch|figure)_\d', svg)
    one, other = (
        figures.stacked("ab", np.arange(3), np.full((2, 3), 0.5), "steps") for _ in range(2)
    )
    assert one == other


def test_shares_at_one_position_are_visible():
    """A short run logs its weights once."""
    svg = figures.stacked("ab", np.array([20.0]), np.array([[0.25], [0.75]]), "updates")
    area = re.search(r'd="M ([^"]*)" clip-path[^>]*fill: var\(--s0\)', svg)
    assert area
    places = [float(point.split()[0]) for point in re.split(r"[LM]", area[1])]
    assert max(places) - min(places) > 100


def test_markdown_has_everything_except_the_figures():
    text = markdown(make_section())
    assert text.startswith("# A section\n") and "## A table" in text and "Figure" not in text
    assert "- command: wsa study" in text


def test_tables_display_values_as_text():
    interval = Interval(0.27, 0.03, 0.56)
    shown = table("A table", ("a",) * 5, [(None, 0.5, (256, 8), ["x"], interval)])
    assert shown.rows == (("-", "0.5", "256, 8", "x", "0.27 [0.03, 0.56]"),)


@pytest.mark.slow
@browser_kit.needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_the_page(tmp_path, width):
    seen = browser_kit.look(page("A report", [make_section()]), tmp_path, width)
    assert browser_kit.count_pixels(seen, 0x00, 0x72, 0xB2) > 500  # The color of the figures.
    browser_kit.check_width(seen)
