"""A small plotter: lines and bars as SVG, readable on a light page and on a dark one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

OURS, OUR_COLOUR = "steer_llm_sdk", "#2f81f7"
"""The same in every plot; what its name begins with."""
COLOURS = ("#d9822b", "#c9364f", "#2ea043", "#8957e5")
DASHES = ("", "12 5", "3 4", "12 4 3 4")
"""Of the others, in their order: where lines lie on each other, the lower one shows in the gaps."""
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 380, 64, 80, 48
STYLE = "text{font:13px sans-serif;fill:#6e7781}.t{font-weight:600;font-size:15px}.g{stroke:#8b949e;stroke-opacity:.3}"
Ticks = Mapping[float, str]


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    ticks: Ticks | None = None,
    shade: tuple[float, float, str] | None = None,
) -> str:
    """One line for each series. `log`: the y axis is logarithmic. `ticks` names places on the x axis."""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points if not log or y > 0]
    low = 10 ** math.floor(math.log10(min(ys))) if log else 0.0
    marks = _decades(low, max(ys)) if log else _steps(max(ys) or 1.0)
    right, bottom = WIDTH - 20, HEIGHT - BOTTOM

    def at_x(x: float) -> float:
        return LEFT + (x - min(xs)) / ((max(xs) - min(xs)) or 1) * (right - LEFT)

    def at_y(y: float) -> float:
        share = math.log(max(y, low) / low) / math.log(marks[-1] / low) if log else y / marks[-1]
        return bottom - share * (bottom - TOP)

    parts = [_text(WIDTH / 2, HEIGHT - 8, x_label), _text(LEFT - 8, TOP - 10, y_label, "start")]
    if shade is not None:
        start, end, name = shade
        box = f'x="{at_x(start):.1f}" y="{TOP}" width="{at_x(end) - at_x(start):.1f}" height="{bottom - TOP}"'
        parts += [f'<rect {box} fill="#8b949e" fill-opacity=".15"/>', _text(at_x((start + end) / 2), TOP + 14, name)]
    for mark in marks:
        parts += [_grid(LEFT, at_y(mark), right), _text(LEFT - 6, at_y(mark) + 4, f"{mark:g}", "end")]
    named = ticks or {x: f"{x:g}" for x in _steps(max(xs)) if min(xs) <= x <= max(xs)}
    parts += [_text(at_x(x), bottom + 18, name) for x, name in named.items()]
    pens = _pens(list(series))
    for name in sorted(series, key=_is_ours):  # Ours last and thinner: it hides nothing, and nothing hides it.
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in series[name])
        parts.append(f'<polyline points="{path}" fill="none" {pens[name].stroke}/>')
    return _picture(title, parts, pens)


def bars(title: str, values: Mapping[str, Mapping[str, float]], y_label: str) -> str:
    """For each group (outer key) one bar for each series (inner key), with its value above it."""
    names = list(dict.fromkeys(name for group in values.values() for name in group))
    marks = _steps(max(value for group in values.values() for value in group.values()) or 1.0)
    right, bottom = WIDTH - 20, HEIGHT - BOTTOM
    room = (right - LEFT) / len(values)
    wide = min(60.0, room * 0.8 / len(names))
    pens = _pens(names)
    parts = [_text(LEFT - 8, TOP - 10, y_label, "start")]
    for mark in marks:
        y = bottom - mark / marks[-1] * (bottom - TOP)
        parts += [_grid(LEFT, y, right), _text(LEFT - 6, y + 4, f"{mark:g}", "end")]
    for number, (label, group) in enumerate(values.items()):
        middle = LEFT + (number + 0.5) * room
        parts.append(_text(middle, bottom + 18, label))
        before = math.inf
        for place, name in enumerate(names):
            if name not in group:
                continue
            x, high = middle + (place - len(names) / 2) * wide, group[name] / marks[-1] * (bottom - TOP)
            box = f'x="{x + 1:.1f}" y="{bottom - high:.1f}" width="{wide - 2:.1f}" height="{high:.1f}"'
            colour = OUR_COLOUR if _is_ours(label) else pens[name].colour
            parts.append(f'<rect {box} fill="{colour}"/>')
            size, text = 9 if wide < 40 else 13, f"{group[name]:g}"
            at = bottom - high - 4
            if 0.6 * size * len(text) > wide and abs(at - before) < size:
                at = before - size - 1  # Two long values side by side: one above the other.
            parts.append(_text(x + wide / 2, at, text, size=size))
            before = at if 0.6 * size * len(text) > wide else math.inf
    return _picture(title, parts, pens if len(names) > 1 else {})


class Pen(NamedTuple):
    """How one series is drawn."""

    colour: str
    width: float
    dash: str

    @property
    def stroke(self) -> str:
        dashed = f' stroke-dasharray="{self.dash}"' if self.dash else ""
        return f'stroke="{self.colour}" stroke-width="{self.width:g}"{dashed}'


def _is_ours(name: str) -> bool:
    return name.startswith(OURS)


def _pens(names: Sequence[str]) -> dict[str, Pen]:
    others = iter(zip(COLOURS, DASHES, strict=True))
    pens = {}
    for name in names:
        if _is_ours(name):
            pens[name] = Pen(OUR_COLOUR, 2, "" if name == OURS else "7 4")
        else:
            colour, dash = next(others)
            pens[name] = Pen(colour, 4, dash)
    return pens


def _picture(title: str, parts: Sequence[str], pens: Mapping[str, Pen]) -> str:
    legend, x, y = [], float(LEFT), 28
    for name, pen in pens.items():
        wide = 48 + 7.0 * len(name)
        if x + wide > WIDTH:
            x, y = float(LEFT), y + 16
        legend.append(f'<line x1="{x:.0f}" x2="{x + 28:.0f}" y1="{y + 2}" y2="{y + 2}" {pen.stroke}/>')
        legend.append(_text(x + 34, y + 6, name, "start"))
        x += wide
    head = f'<text class="t" x="{LEFT}" y="18">{escape(title)}</text>'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    body = "\n".join([head, *legend, *parts])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 13) -> str:
    own = "" if size == 13 else f' style="font-size:{size}px"'
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{own}>{escape(text)}</text>'


def _grid(left: float, y: float, right: float) -> str:
    return f'<line class="g" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _steps(top: float) -> list[float]:
    """0 and about five round numbers, the last of them not below `top`."""
    raw = top / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw * 0.999)
    return [step * number for number in range(math.ceil(top / step - 1e-9) + 1)]


def _decades(low: float, top: float) -> list[float]:
    return [10.0**power for power in range(round(math.log10(low)), math.ceil(math.log10(top) - 1e-9) + 1)]
