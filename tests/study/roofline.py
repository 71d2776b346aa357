"""A roofline as SVG: FLOP/s against FLOP for each ideal byte, under a copy and a matrix product timed beside them."""

import math
import statistics
from collections.abc import Sequence

from tests.study.stored import Row

WIDTH, HEIGHT = 820, 500
LEFT, RIGHT, TOP, BOTTOM = 70, 590, 20, 450
X, Y = (0.1, 1000.0), (1e10, 2e15)  # FLOP a byte, FLOP/s
# Told apart by form too, for those who do not see the colours.
STYLES = (
    ("#0072b2", "circle"), ("#d55e00", "square"), ("#009e73", "diamond"), ("#cc79a7", "circle"), ("#e69f00", "square"),
    ("#000000", "diamond"),
)  # fmt: skip


def roofline(rows: Sequence[Row]) -> str:
    """The plot of every row of peers and operators that has a rate."""
    copy, matmul = (statistics.median(row.metrics[name] for row in rows) for name in ("ceiling_copy", "ceiling_matmul"))
    ridge = matmul / copy
    parts = [_frame(), _line((X[0], X[0] * copy), (ridge, matmul)), _line((ridge, matmul), (X[1], matmul))]
    parts += [
        _text(*_at(X[0] * 2, X[0] * 2 * copy), f"copy {copy / 1e12:.2f} TB/s", dy=-10),
        _text(*_at(X[1], matmul), f"matrix product {matmul / 1e12:.0f} TFLOP/s", dy=-8, anchor="end"),
    ]
    series: dict[str, list[Row]] = {}
    for row in rows:
        if "arithmetic" in row.metrics and row.group in ("peers", "regret"):
            series.setdefault(_series(row), []).append(row)
    for number, (name, points) in enumerate(series.items()):
        color, form = STYLES[number % len(STYLES)]
        title = [f"{name}: {' '.join(row.params.values())}, {row.ms * 1e3:.1f} µs" for row in points]
        places = [_at(row.intensity, row.metrics["arithmetic"]) for row in points]
        parts += [_mark(x, y, color, form, said) for (x, y), said in zip(places, title, strict=True)]
        y = TOP + 12 + 20 * number
        parts += [_mark(RIGHT + 20, y, color, form, name), _text(RIGHT + 32, y, name, dy=4)]
    style = "<style>text{font:12px sans-serif;fill:#222}</style>"
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', style, *parts, "</svg>"]
    return "\n".join(lines) + "\n"


def _series(row: Row) -> str:
    return row.params["scan"] if row.group == "peers" else row.params["name"].partition("-")[0]


def _at(x: float, y: float) -> tuple[float, float]:
    across = (math.log10(x) - math.log10(X[0])) / (math.log10(X[1]) - math.log10(X[0]))
    up = (math.log10(y) - math.log10(Y[0])) / (math.log10(Y[1]) - math.log10(Y[0]))
    return round(LEFT + across * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)


def _frame() -> str:
    size = f'width="{RIGHT - LEFT}" height="{BOTTOM - TOP}"'
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for power in range(-1, 4):
        x, _ = _at(10.0**power, Y[0])
        parts += [_rule(x, TOP, x, BOTTOM), _text(x, BOTTOM, f"{10.0**power:g}", dy=18, anchor="middle")]
    for power in range(10, 16):
        _, y = _at(X[0], 10.0**power)
        parts += [_rule(LEFT, y, RIGHT, y), _text(LEFT, y, f"{10.0 ** (power - 12):g}", dx=-6, dy=4, anchor="end")]
    parts += [
        f'<rect x="{LEFT}" y="{TOP}" {size} fill="none" stroke="#888"/>',
        _text((LEFT + RIGHT) / 2, BOTTOM, "FLOP for each ideal byte", dy=38, anchor="middle"),
        f'<text transform="translate(18 {(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">TFLOP/s</text>',
    ]
    return "\n".join(parts)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#e4e4e4"/>'


def _line(start: tuple[float, float], stop: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = _at(*start), _at(*stop)
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="#222" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, *, dx: int = 0, dy: int = 0, anchor: str = "start") -> str:
    return f'<text x="{x + dx}" y="{y + dy}" text-anchor="{anchor}">{text}</text>'


def _mark(x: float, y: float, color: str, form: str, title: str) -> str:
    side = 'x="-4" y="-4" width="8" height="8"'
    turn = ' transform="rotate(45)"' if form == "diamond" else ""
    shape = '<circle r="4.5"/>' if form == "circle" else f"<rect {side}{turn}/>"
    style = f'transform="translate({x} {y})" fill="{color}" fill-opacity=".8" stroke="#fff"'
    return f"<g {style}>{shape}<title>{title}</title></g>"
