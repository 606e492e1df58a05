"""Charts of anything that a run can measure: ticks, labels, gaps, and a picture that fits its frame."""

import itertools
import math
import random
import re
from xml.etree import ElementTree

import pytest

from whale_jax.evaluation.report.curves import Line, chart, limits, nice_ticks, swatch, tick_labels

RANDOM = random.Random(0)
WIDTH, HEIGHT = 260, 162
PLOT_TOP, PLOT_BOTTOM = 13, 132


def ranges(count: int) -> list[tuple[float, float]]:
    """(low, high) of every size, sign and offset that a float of a metric has."""
    found = [(0.0, 1.0), (-3.0, 103.0), (0.865, 0.96), (-1e-9, 3e-9), (0.0, 1e300), (-1e300, 1e300), (0.0, 1e-290)]
    while len(found) < count:
        middle, size = RANDOM.choice((0.0, 1.0, -1.0)) * 10 ** RANDOM.uniform(-12, 12), 10 ** RANDOM.uniform(-12, 12)
        if size > 1e-9 * abs(middle):
            found.append((middle - size * RANDOM.random(), middle + size * (0.01 + RANDOM.random())))
    return found


@pytest.mark.parametrize("most", range(3, 9))
def test_ticks_are_few_round_and_evenly_apart(most):
    for low, high in ranges(200):
        ticks = nice_ticks(low, high, most)
        slack = 1e-8 * (high - low)
        assert 1 <= len(ticks) <= most and (len(ticks) > 1 or most < 5), (low, high)
        assert low - slack <= ticks[0] and ticks[-1] <= high + slack
        steps = [b - a for a, b in itertools.pairwise(ticks)]
        for step in steps:
            digits = step / 10 ** math.floor(math.log10(step) + 1e-6)
            assert min(abs(digits - round_one) for round_one in (1, 2, 5)) < 1e-4, (low, high, ticks)
            assert step == pytest.approx(steps[0], rel=1e-4)


def test_ticks_of_whole_things_are_whole():
    for _ in range(300):
        first, count = RANDOM.randrange(-50, 10**6), RANDOM.choice((1, 3, 14, 300, 10**6))
        ticks = nice_ticks(first - 0.5, first + count + 0.5, RANDOM.randrange(3, 9), whole=True)
        assert ticks and all(tick == round(tick) for tick in ticks)
    assert nice_ticks(2.5, 3.5, 8, whole=True) == [3.0]
    assert nice_ticks(0.2, 0.4, 8, whole=True) == []


def test_labels_say_what_the_ticks_are_and_tell_them_apart():
    units = {"": 1.0, "k": 1e3, "M": 1e6}
    for low, high in ranges(300):
        ticks = nice_ticks(low, high, 6)
        texts = tick_labels(ticks)
        assert len(set(texts)) == len(ticks), texts
        for tick, text in zip(ticks, texts, strict=True):
            number, suffix = re.fullmatch(r"(−?\d+(?:\.\d+)?)(k|M|e−?\d+)?", text).groups(default="")
            unit = units[suffix] if suffix in units else float(f"1{suffix}".replace("−", "-"))
            assert float(number.replace("−", "-")) * unit == pytest.approx(tick, rel=1e-9, abs=1e-6 * (high - low))
    assert tick_labels([0.0, 500_000, 1_000_000]) == ["0", "0.5M", "1.0M"]
    assert tick_labels([-5000, 0.0, 5000, 10_000]) == ["−5k", "0", "5k", "10k"]
    assert tick_labels([0.05, 0.1, 0.15]) == ["0.05", "0.10", "0.15"]
    assert tick_labels([2e-9, 4e-9]) == ["2e−9", "4e−9"] and tick_labels([3.0]) == ["3"] and tick_labels([]) == []


def series(kind: str) -> list[float | None]:
    count = RANDOM.choice((1, 2, 5, 40))
    size = 10 ** RANDOM.uniform(-10, 10)
    if kind == "constant":
        return [RANDOM.choice((0.0, size, -size))] * count
    if kind == "offset":
        return [size * (1 + 10 ** RANDOM.uniform(-16, -6) * RANDOM.random()) for _ in range(count)]
    values = [size * RANDOM.uniform(-1, 1) for _ in range(count)]
    gaps = {"gaps": (None, math.nan, math.inf, -math.inf), "nothing": (None, math.nan)}.get(kind, ())
    return [RANDOM.choice(gaps) if gaps and (kind == "nothing" or RANDOM.random() < 0.5) else v for v in values]


def drawn(text: str) -> ElementTree.Element:
    """The chart as XML, looked at: every number is one, and every text and shape is inside the frame."""
    assert not re.search(r"nan|inf\b", re.sub(r'aria-label="[^"]*"', "", text))
    svg = ElementTree.fromstring(text)
    assert svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}" and svg.get("role") == "img"
    for label in svg.findall("text"):
        x, y, wide = float(label.get("x")), float(label.get("y")), 4.9 * len(label.text or "")
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[label.get("text-anchor")]
        assert left >= -0.1 and left + wide <= WIDTH + 0.1 and 7 < y < HEIGHT, (label.text, x, y)
    for circle in svg.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= WIDTH and PLOT_TOP <= float(circle.get("cy")) <= PLOT_BOTTOM
    for path in svg.findall("g/path"):
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.get("d")):
            assert 0 <= float(x) <= WIDTH and PLOT_TOP <= float(y) <= PLOT_BOTTOM
    return svg


def labels_of_x(svg: ElementTree.Element) -> list[tuple[float, str]]:
    return [(float(text.get("x")), text.text) for text in svg.findall("text") if text.get("y") == "143.8"]


@pytest.mark.parametrize("kind", ["values", "constant", "offset", "gaps", "nothing"])
def test_any_series_makes_a_chart_that_fits_its_frame(kind):
    for _ in range(120):
        lines = []
        for role in RANDOM.sample(["model", "repeat", "wrong", "reconstruction", "held-out"], RANDOM.randint(1, 5)):
            y, whole = series(kind), RANDOM.random() < 0.5
            x = [k * RANDOM.choice((1, 20, 50_000)) for k in range(len(y))] if whole else sorted(map(abs, series("x")))
            y = (y * 40)[: len(x)]
            lines.append(Line(role, role, x, y, points=RANDOM.random() < 0.3, mark=RANDOM.choice(("", "", "7"))))
        shared = RANDOM.choice((None, limits(lines)))
        svg = drawn(chart("anything", lines, "horizon (frames)", "consistent (%)", shared, RANDOM.random() < 0.5))
        shown = sum(len(run) for line in lines for run in line.runs())
        shapes = [len(re.findall("[ML]", path.get("d"))) for path in svg.findall("g/path")]
        assert len(list(svg.iter("circle"))) + sum(shapes) == shown
        places = labels_of_x(svg)
        for (a, one), (b, other) in itertools.pairwise(places):
            assert b - a >= 4.9 * (len(one) + len(other)) / 2, places


def test_gaps_part_a_line_and_a_lone_value_is_a_dot():
    (group,) = drawn(chart("t", [Line("a", "model", range(7), [1, 2, None, 3, math.nan, 2, 4])], "x", "y")).findall("g")
    assert [len(re.findall("[ML]", path.get("d"))) for path in group.findall("path")] == [2, 2]
    assert len(group.findall("circle")) == 1 and group.find("title").text == "a"


def test_limits_are_shared_and_places_follow_values():
    lines = [Line("a", "model", [1, 2, 3], [0.0, 5.0, 10.0]), Line("b", "wrong", [1, 2, 3], [10.0, 5.0, 0.0])]
    assert limits(lines) == (-0.5, 10.5) and limits([Line("c", "model", [1], [None])]) is None
    assert limits([Line("c", "model", [1, 2], [0.5, 0.5])]) == (0.0, 1.0)
    paths = drawn(chart("t", lines, "x", "y", (0.0, 20.0))).findall("g/path")
    first, second = ([float(y) for _, y in re.findall(r"[ML](\S+) ([\d.]+)", path.get("d"))] for path in paths)
    assert first == second[::-1] and first[0] == PLOT_BOTTOM and first[2] == pytest.approx(72.5, abs=0.1)


def test_whole_things_have_whole_ticks_and_long_labels_have_room():
    horizon = [Line("a", "model", range(1, 15), [20.0 - k for k in range(14)])]
    assert [text for _, text in labels_of_x(drawn(chart("t", horizon, "x", "y", whole_x=True)))] == list(
        map(str, range(2, 15, 2))
    )
    crowded = [Line("a", "model", [1.0000001, 1.0000009], [1234567.125, 1234567.25])]
    assert [text for _, text in labels_of_x(drawn(chart("t", crowded, "x", "y")))] == ["1.0000005"]


def test_points_are_marked_at_their_mean_and_above_every_line():
    lines = [Line("a", "model", [0, 2], [0.0, 2.0], True, "1"), Line("b", "repeat", [5, 7], [4.0, 4.0], True, "2")]
    svg = drawn(chart("t", lines, "x", "y"))
    kinds = [element.tag for element in svg][:5]
    assert kinds == ["path", "g", "g", "text", "text"]
    circles = [float(circle.get("cx")) for circle in svg.findall("g")[0].findall("circle")]
    assert float(svg.findall("text")[0].get("x")) == pytest.approx(sum(circles) / 2, abs=0.2)


def test_charts_take_their_colours_from_the_page():
    lines = [Line("model", "model", [1, 2, 3], [20.0, None, 18.0])]
    lines += [Line("repeat", "repeat", [1, 2, 3], [15.0] * 3)]
    first, second = chart("A < B", lines, "step", "dB"), chart("A < B", lines, "step", "dB")
    spoken = drawn(first).get("aria-label")
    assert spoken == "A < B: model from 20 at 1 to 18 at 3; repeat from 15 at 1 to 15 at 3."
    assert "var(--model)" in first and not re.search(r"#[0-9a-f]{6}|<style|<metadata|DejaVu", first)
    assert first == second and not re.search(r"\bid=|url\(", first)
    assert "var(--wrong)" in swatch("wrong") and ElementTree.fromstring(swatch("model")).get("aria-hidden") == "true"
