"""Parts of HTML pages that are single files: they request nothing, not even from this machine."""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # training writes pages without matplotlib
    from matplotlib.figure import Figure

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:78rem;padding:0 1rem;color:#1a202c}
img{max-width:100%;display:block}
table{border-collapse:collapse}
td,th{padding:.3rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid #cbd5e0}
code{background:#edf2f7;padding:0 .2rem;border-radius:3px}
figure{margin:1rem 0}
figcaption{color:#4a5568}
svg{display:block;width:100%;font-size:13px;fill:#4a5568}
svg polyline{fill:none;stroke-width:2;stroke-linejoin:round}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1")
WIDTH, HEIGHT = 600, 330  # of the drawing of :func:`curves`, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 52, 592, 40, 288  # its plotting area
MAX_INTERVALS = 6  # between the ticks of an axis, before they are rounded outwards

Points = Sequence[tuple[float, float]]


def document(title: str, body: str, style: str = "", refresh_s: int | None = None) -> str:
    """A complete page of the HTML ``body``; with ``refresh_s``, the browser reloads it after that many seconds."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if refresh_s else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width">{refresh}<title>{escape(title)}</title>'
        f"<style>{STYLE}{style}</style></head><body>{body}</body></html>\n"
    )


def picture(figure: "Figure", description: str, dpi: int = 110) -> str:
    """An ``<img>`` element that contains the figure as PNG; ``description`` is its alternative text."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A ``<table>`` element; cells are escaped."""
    head = "".join(f'<th scope="col">{escape(str(cell))}</th>' for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def curves(title: str, x_label: str, lines: Mapping[str, Points], marked: tuple[float, float, str] | None) -> str:
    """An ``<svg>`` element of lines over an axis of whole numbers, with a legend.

    Args:
        lines: points by name; those that are not finite are left out.
        marked: x, y and label of a point to mark.
    """
    finite = {name: [point for point in line if math.isfinite(point[1])] for name, line in lines.items()}
    points = [point for line in finite.values() for point in line] or [(0.0, 0.0), (1.0, 1.0)]
    xs, ys = zip(*points, strict=True)
    x_ticks, y_ticks = _ticks(xs, least=1), _ticks(ys)
    left, right = min(xs), max(*xs, min(xs) + 1)

    def position(x: float, y: float) -> tuple[float, float]:
        across, up = (x - left) / (right - left), (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(LEFT + across * (RIGHT - LEFT), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)

    parts = [f'<text x="{LEFT}" y="18" fill="#1a202c" font-weight="600" font-size="15">{escape(title)}</text>']
    for tick in y_ticks:
        y = position(left, tick)[1]
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y}" y2="{y}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in (tick for tick in x_ticks if left <= tick <= right):
        x = position(tick, y_ticks[0])[0]
        parts.append(f'<text x="{x}" y="{BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{BOTTOM + 38}" text-anchor="middle">{escape(x_label)}</text>')
    for number, (name, line) in enumerate(finite.items()):
        colour, start = COLOURS[number % len(COLOURS)], RIGHT - 110 * (len(finite) - number)
        drawn = " ".join(f"{x},{y}" for x, y in (position(*point) for point in line))
        parts.append(f'<polyline points="{drawn}" stroke="{colour}"/>')
        parts.append(f'<line x1="{start}" x2="{start + 22}" y1="13" y2="13" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{start + 28}" y="18">{escape(name)}</text>')
    if marked:
        x, y = position(marked[0], marked[1])
        anchor, offset = ("start", 6) if x < (LEFT + RIGHT) / 2 else ("end", -6)
        parts.append(f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{BOTTOM}" stroke="#718096" stroke-dasharray="4 3"/>')
        parts.append(f'<text x="{x + offset}" y="{TOP + 12}" text-anchor="{anchor}">{escape(marked[2])}</text>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="#1a202c"/>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _ticks(values: Sequence[float], least: float = 0.0) -> list[float]:
    """Round numbers at least ``least`` apart that enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power: float = 10.0 ** math.floor(math.log10(span / MAX_INTERVALS))
    step = max(least, next(power * by for by in (1, 2, 5, 10, 20) if span <= MAX_INTERVALS * power * by))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
