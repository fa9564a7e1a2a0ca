"""Reports: one offline file, nothing unescaped, every chart inside its frame."""

import itertools
import math
import re
from html.parser import HTMLParser

import pytest
import torch

from kdgen.grid import grid, png
from kdgen.metrics import Measure
from kdgen.report import (
    Card,
    Chart,
    Definitions,
    Panel,
    Panels,
    Report,
    Section,
    Series,
    Table,
    Text,
    build,
    quality,
    write,
)
from kdgen.report.chart import COLOURS
from kdgen.report.style import CSS

VOID = {"meta", "img", "line", "circle", "polyline"}
EVIL = "<script>alert(\"1\")</script> & 'quoted'"


class Page(HTMLParser):
    """Collects the elements and the text, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.elements if name == tag]


def measure(**changes) -> Measure:
    known = dict(name="FD[x, n=9]", value=3.0, spread=0.5, floor=1.0, n=9, seed=0, caveat="Blind.")
    return Measure(**(known | changes))


def picture() -> bytes:
    return png(grid(torch.zeros(64, 1, 8, 8, dtype=torch.uint8)))


def full_report(word: str = "plain", steps: int = 5_000) -> Report:
    loss = Series(word, range(steps), [1 + math.exp(-i / 500) for i in range(steps)])
    return Report(
        title=word,
        lead=word,
        cards=[Card(word, word, word)],
        sections=[
            Section(word, [Panels([Panel(word, picture(), word), Panel(word, picture())])], word),
            Section(word, [Chart(word, [loss, loss], word, word, log_y=True), Chart(word, [loss])]),
            Section(word, [Table([word, word], [[word, "1.5 s"]], details=[word], note=word)]),
            Section(word, [quality({word: [measure(caveat=word)]})]),
            Section(word, [Text(word), Definitions({word: word, "steps": 3})], folded=True),
        ],
        footer=word,
    )


def test_a_full_report_is_balanced_small_and_asks_for_nothing_from_outside():
    text = build(full_report())
    page = Page(text)
    assert len(text.encode()) < 1_000_000
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"@import|url\(|https?://", text)
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")


def test_every_text_is_escaped_wherever_it_stands():
    page = Page(build(full_report(EVIL, steps=3)))
    plain = Page(build(full_report("plain", steps=3)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert page.text.count(EVIL) == plain.text.count("plain")


def test_panels_stand_side_by_side_and_keep_their_pixels_sharp():
    text = build(full_report())
    assert len(Page(text).all("img")) == 2
    assert "image-rendering: pixelated" in text


def test_the_quality_table_shows_floor_caveat_n_and_seed():
    shown = quality({"teacher": [measure()], "student": [measure(value=6.0)]})
    page = Page(build(Report("t", "l", sections=[Section("Quality", [shown])])))
    for part in (
        "FD[x, n=9]",
        "3.00 ± 0.50",
        "6.00",
        "1.00",
        "Blind.",
        "Seed 0",
        "real against real",
    ):
        assert part in page.text
    assert "none is FID" in page.text


def chart_page(chart: Chart) -> Page:
    return Page(build(Report("t", "l", sections=[Section("s", [chart])])))


def points(page: Page) -> list[list[tuple[float, float]]]:
    lines = [p["points"].split() for p in page.all("polyline")]
    return [[tuple(map(float, p.split(","))) for p in line] for line in lines]


def test_a_straight_line_is_drawn_straight_from_edge_to_edge():
    [line] = points(chart_page(Chart("c", [Series("a", [0, 5, 10], [0, 50, 100])])))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y0 > y2, "larger values stand higher"


def test_an_exponential_is_straight_on_a_logarithmic_axis():
    y = [10.0**-i for i in range(5)]
    [line] = points(chart_page(Chart("c", [Series("a", range(5), y)], log_y=True)))
    steps = [b[1] - a[1] for a, b in itertools.pairwise(line)]
    assert max(steps) - min(steps) < 0.2


def test_a_power_law_is_straight_where_both_axes_are_logarithmic():
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    [line] = points(
        chart_page(Chart("c", [Series("a", x, [v**-2 for v in x])], "n", "", True, True))
    )
    moves = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(line)]
    for along in zip(*moves, strict=True):
        assert max(along) - min(along) < 0.3


def test_a_logarithmic_x_axis_says_so_and_leaves_out_what_has_no_logarithm():
    page = chart_page(Chart("c", [Series("a", [0, 1, 10], [1, 2, 3])], "steps", log_x=True))
    assert len(points(page)[0]) == 2
    assert "steps (log)" in page.text
    assert "1 values cannot be drawn" in page.text


def test_every_colour_of_the_charts_is_in_the_style_sheet_light_and_dark():
    for i in range(COLOURS):
        assert len(re.findall(rf"--c{i}: #", CSS)) == 2
        assert f".s{i} {{" in CSS


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "y",
    [[3.0, 3.0], [0.0, 0.0], [-1e9, 1e9], [1e-12, 3e-12], [5.0], [1, 2, math.nan, 4], [-3, -2, 7]],
    ids=str,
)
def test_whatever_the_values_the_line_and_its_ticks_stay_inside_the_frame(y, log_y):
    page = chart_page(Chart("c", [Series("a", range(len(y)), y)], log_y=log_y))
    if not page.all("svg"):
        assert log_y
        assert "no data" in page.text
        return
    _, _, width, height = map(float, page.all("svg")[0]["viewbox"].split())
    shapes = [p for line in points(page) for p in line]
    shapes += [(float(c["cx"]), float(c["cy"])) for c in page.all("circle")]
    shapes += [(float(li[x]), float(li[y])) for li in page.all("line") for x, y in ENDS]
    assert shapes
    for x, y_ in shapes:
        assert 0 <= x <= width
        assert 0 <= y_ <= height
    assert 2 <= sum(li["class"] == "grid" for li in page.all("line")) <= 12


ENDS = (("x1", "y1"), ("x2", "y2"))


def test_long_curves_are_thinned_and_say_so_and_so_are_missing_values():
    y = [float(i) for i in range(3_000)]
    y[7] = math.nan
    page = chart_page(Chart("c", [Series("a", range(3_000), y)]))
    assert len(points(page)[0]) <= 300
    assert "mean of 10 values" in page.text
    assert "1 values cannot be drawn" in page.text


def test_a_legend_appears_with_the_second_line():
    one, two = Series("first", [0, 1], [0, 1]), Series("second", [0, 1], [1, 0])
    assert "first" not in chart_page(Chart("c", [one])).text
    assert "firstsecond" in chart_page(Chart("c", [one, two])).text


def test_a_report_without_cards_or_sections_is_still_a_page():
    page = Page(build(Report("only a title", "and a sentence")))
    assert "only a title" in page.text


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="has 1 cells; expected 2"):
        Table(["a", "b"], [["1"]])
    with pytest.raises(ValueError, match="2 details for 1 rows"):
        Table(["a"], [["1"]], details=["x", "y"])
    with pytest.raises(ValueError, match="not a PNG"):
        build(Report("t", "l", sections=[Section("s", [Panels([Panel("p", b"GIF89a")])])]))
    with pytest.raises(ValueError, match="2 x for 1 y"):
        chart_page(Chart("c", [Series("a", [1, 2], [1])]))


def test_writing_is_atomic_and_leaves_one_file(tmp_path):
    path = tmp_path / "runs" / "report.html"
    write(full_report("first"), path)
    write(full_report("second"), path)
    assert path.read_text(encoding="utf-8") == build(full_report("second"))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
