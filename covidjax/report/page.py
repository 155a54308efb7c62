"""HTML that is escaped by construction, the number formats of the report, and its stylesheet."""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MISSING = "\N{EN DASH}"
VOID_ELEMENTS = frozenset({"img", "meta"})


class Html(str):
    """Markup. Every other string that reaches `element` is text and gets escaped."""

    __slots__ = ()


def join(parts: Iterable[str | None], separator: str = "") -> Html:
    """Concatenates text (escaped) and markup (kept); None is left out."""
    kept = [part if isinstance(part, Html) else html.escape(part) for part in parts if part is not None]
    return Html(separator.join(kept))


def element(tag: str, *children: str | None, **attributes: str | None) -> Html:
    """One HTML element; an attribute named like a Python keyword takes a trailing underscore (`class_`).

    An attribute that is None is left out, and so is a child that is None.
    """
    written = "".join(
        f' {name.rstrip("_")}="{html.escape(value)}"' for name, value in attributes.items() if value is not None
    )
    if tag in VOID_ELEMENTS:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{join(children)}</{tag}>")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str, total: Sequence[str] | None = None) -> Html:
    """A table with one `align` letter a column, l or r; the first cell of each row is its heading."""

    def line(cells: Sequence[str], first: str, other: str, scope: str | None) -> Html:
        built = []
        for index, (cell, side) in enumerate(zip(cells, align, strict=True)):
            tag = first if index == 0 else other
            built.append(element(tag, cell, class_=side, scope=scope if tag == "th" else None))
        return element("tr", *built)

    head = element("thead", line(header, "th", "th", "col"))
    body = element("tbody", *(line(row, "th", "td", "row") for row in rows))
    foot = element("tfoot", line(total, "th", "td", "row")) if total is not None else None
    return element("div", element("table", head, body, foot), class_="scroll")


def image(data: bytes, media_type: str, alt: str, class_: str | None = None) -> Html:
    """An `img` that carries its own bytes."""
    source = f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
    return element("img", src=source, alt=alt, class_=class_)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float (a bool is neither)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def decimal(value: Any) -> str:
    """0.9333 -> '0.933'; what is no finite number -> a dash."""
    return f"{value:.3f}" if is_number(value) else MISSING


def interval(bounds: Any) -> str | None:
    """[0.88, 0.96] -> '[0.880, 0.960]'; None where there is no such pair of finite numbers."""
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or not all(is_number(bound) for bound in bounds):
        return None
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def estimate(figures: Mapping[str, Any], key: str) -> Html:
    """The figure `key` with the interval `key`_ci95 beside it, where there is one."""
    bounds = interval(figures.get(f"{key}_ci95"))
    shown = decimal(figures.get(key))
    return join([shown, " ", element("span", bounds, class_="interval")]) if bounds else join([shown])


def integer(value: Any) -> str:
    """1234567 -> '1,234,567'."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def short_count(value: float) -> str:
    """11178051 -> '11.18 M'; below ten thousand the exact number."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}\N{NO-BREAK SPACE}{unit}"
    return integer(value)


def gigaflops(value: Any) -> str:
    """Floating point operations as GFLOP with three decimals; a small amount that is not zero shows as '< 0.001'."""
    if not is_number(value):
        return MISSING
    return "< 0.001" if 0 < value < 5e5 else f"{value / 1e9:,.3f}" if value else "0"


def byte_size(value: Any) -> str:
    """Bytes in binary units: '912 B', '4.0 KiB', '85.3 MiB', '1.2 GiB'."""
    if not is_number(value):
        return MISSING
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:,.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.0f}\N{NO-BREAK SPACE}B" if value else "0"


def rate(value: Any) -> str:
    """A number per second: '61.2', '1,035', '25,310'."""
    if not is_number(value):
        return MISSING
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: Any) -> str:
    """Seconds as '4.2 s', '2 min 05 s' or '3 h 20 min'."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def document(title: str, body: Sequence[Html]) -> str:
    """A whole HTML page that needs nothing but itself."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', element('main', *body)), lang='en')}\n"


STYLE = """
:root { --ink: #1d1d1f; --muted: #66686d; --rule: #d9d7d0; --paper: #fdfcfa; --train: #0072b2; --wrong: #b84a00; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5; font-size: 16px;
  font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 600; break-after: avoid; }
h1 { font-size: 2rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; overflow-wrap: anywhere; }
p.muted, p.subtitle, figcaption { color: var(--muted); }
ul { margin: .4rem 0 .8rem; padding-left: 1.2rem; max-width: 46rem; overflow-wrap: anywhere; }
nav, table, figcaption, .headline, .warning, summary, .samples, .legend {
  font-family: "Helvetica Neue", "Segoe UI", Roboto, Arial, "Liberation Sans", sans-serif; }
nav { font-size: .85rem; margin: 1.2rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
nav a { color: var(--train); text-decoration: none; }
.warning { margin: 1.1rem 0 1.4rem; padding: .6rem .9rem; border-left: 4px solid var(--wrong); background: #f8efe6;
  font-weight: 600; font-size: .95rem; max-width: none; }
.headline { display: grid; grid-template-columns: repeat(6, auto); justify-content: space-between; gap: 1rem 1.5rem;
  margin: 0; padding: 1rem 0; border-top: 2px solid var(--ink); border-bottom: 1px solid var(--rule); }
.headline > div { min-width: 6.2rem; }
.headline dt { color: var(--muted); font-size: .78rem; white-space: nowrap; }
.headline dd { margin: 0; font-size: 1.45rem; line-height: 1.3; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.headline small { display: block; width: 0; min-width: 100%; color: var(--muted); font-size: .78rem;
  white-space: normal; }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .32rem .9rem .32rem 0; vertical-align: baseline; font-weight: 400; }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 1px solid var(--ink); color: var(--muted); font-size: .78rem; vertical-align: bottom; }
tbody tr + tr > * { border-top: 1px solid #eceae4; }
tfoot > tr > * { border-top: 1px solid var(--ink); font-weight: 600; }
.l { text-align: left; } .r { text-align: right; white-space: nowrap; }
td.l { overflow-wrap: break-word; }
.interval { color: var(--muted); font-size: .92em; }
.wide table { width: 100%; }
.wide.even table { table-layout: fixed; min-width: 44rem; }
th.r + .l, td.r + .l { padding-left: 1.2rem; }
.row { display: flex; flex-wrap: wrap; gap: 1rem 1.6rem; align-items: flex-start; justify-content: space-between; }
.row > * { min-width: 0; max-width: 100%; }
.row.near { justify-content: flex-start; column-gap: 4rem; }
.row h3 { margin-top: .8rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .8rem; }
.plot { display: block; width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1.2rem 1.4rem; }
.curves figcaption { color: var(--ink); font-weight: 600; }
.reliability { width: 19rem; }
.confusion { border-collapse: separate; border-spacing: 3px; }
.confusion th { padding: .2rem .5rem; border: 0; color: var(--ink); font-size: .82rem;
  white-space: normal; vertical-align: middle; }
.confusion thead tr:first-child th { color: var(--muted); text-align: center; }
.confusion thead tr + tr th { text-align: center; vertical-align: bottom; }
.confusion thead .l { text-align: right !important; color: var(--muted); }
.confusion tbody td { width: 5rem; min-width: 3.6rem; padding: .55rem .3rem; border: 0; text-align: center;
  background: #f3f2ee; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.confusion b { display: block; font-size: 1.15rem; font-weight: 600; line-height: 1.2; }
.confusion td span { font-size: .75rem; }
.confusion td.zero { color: #85878c; }
.confusion td.zero b { font-weight: 400; }
.confusion.dense { border-spacing: 2px; }
.confusion.dense thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
.confusion.dense tbody td { width: 3rem; min-width: 3rem; padding: .35rem .1rem; }
.confusion.dense td span { font-size: .65rem; }
.confusion.dense b { font-size: .95rem; }
.samples { display: grid; grid-template-columns: repeat(6, 1fr); gap: 1rem .8rem; margin: .6rem 0 1rem; }
.samples img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: #000; }
.samples img.small { image-rendering: pixelated; }
.samples figcaption { font-size: .78rem; line-height: 1.35; margin-top: .3rem; color: var(--ink);
  overflow-wrap: anywhere; }
.samples small { display: block; color: var(--muted); font-size: .7rem; line-height: 1.3; }
.samples .probability { display: block; font-variant-numeric: tabular-nums; }
.wrong { color: var(--wrong); font-weight: 600; } .right { color: var(--train); font-weight: 600; }
.pairs { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem; margin: .6rem 0 1rem; }
.pairs img { display: block; width: 100%; height: auto; }
.pairs figcaption { font-size: .78rem; line-height: 1.35; margin-top: .3rem; color: var(--ink);
  overflow-wrap: anywhere; }
.pairs small { display: block; color: var(--muted); font-size: .7rem; line-height: 1.3; }
.pairs .probability { margin-left: .5rem; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.histogram { width: 22rem; }
.batch { display: block; max-width: 100%; height: auto; }
summary { cursor: pointer; font-size: .9rem; color: var(--train); }
code { font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .92em;
  overflow-wrap: anywhere; }
@media (max-width: 56rem) { .headline { grid-template-columns: repeat(3, auto); } }
@media (max-width: 40rem) {
  main { padding: 1.2rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  .headline { grid-template-columns: repeat(2, auto); justify-content: start; gap: 1rem 2.5rem; }
  .samples { grid-template-columns: repeat(3, 1fr); gap: .8rem .5rem; }
  .pairs { grid-template-columns: 1fr; }
  .histogram { width: 100%; max-width: 22rem; }
  .reliability { width: 100%; max-width: 22rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  html { font-size: 13px; }
  body { background: #fff; font-size: 1rem; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  tr, figure { break-inside: avoid; }
  .scroll { overflow: visible; }
  .warning, .samples img, .legend i { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { display: block; content-visibility: visible; }
}
"""
