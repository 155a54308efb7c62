"""Numbers as pages show them, each format a function of a value of a record; what is no finite number is a dash."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from covidjax.freeze.table import rates_text

MISSING = "\N{EN DASH}"


def is_number(value: Any) -> bool:
    """Whether `value` is a finite int or float (a bool is neither)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def decimal(value: Any) -> str:
    """0.9333 -> '0.933'."""
    return f"{value:.3f}" if is_number(value) else MISSING


def signed(value: Any) -> str:
    """-0.0125 -> '\N{MINUS SIGN}0.013', 0.0125 -> '+0.013'."""
    if not is_number(value):
        return MISSING
    shown = f"{value:+.3f}"
    return "0.000" if shown[1:] == "0.000" else shown.replace("-", "\N{MINUS SIGN}")


def interval(bounds: Any) -> str:
    """[0.88, 0.96] -> '[0.880, 0.960]'; nothing where there is no such pair of finite numbers."""
    return _pair(bounds, decimal)


def signed_interval(bounds: Any) -> str:
    """[-0.02, 0.01] -> '[\N{MINUS SIGN}0.020, +0.010]', or nothing."""
    return _pair(bounds, signed)


def p_value(value: Any) -> str:
    """0.0412 -> '0.041'."""
    return "< 0.001" if is_number(value) and value < 0.001 else decimal(value)


def percent(share: Any) -> str:
    """0.58 -> '58%', 0.0123 -> '1.2%'."""
    return MISSING if not is_number(share) else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


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


def learning_rates(value: Any) -> str:
    """[0.001] -> '0.001', [1e-05, 0.001] -> '1e-05 to 0.001'; nothing where nothing trains."""
    return rates_text(value) if isinstance(value, list) else ""


def duration(seconds: Any) -> str:
    """Seconds as '4.2 s', '2 min 05 s' or '3 h 20 min'."""
    if not is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _pair(bounds: Any, one: Callable[[Any], str]) -> str:
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or not all(is_number(bound) for bound in bounds):
        return ""
    return f"[{one(bounds[0])}, {one(bounds[1])}]"


FORMATS: dict[str, Callable[[Any], str]] = {
    each.__name__: each
    for each in (
        *(decimal, signed, interval, signed_interval, p_value, percent),
        *(integer, short_count, gigaflops, byte_size, rate, learning_rates, duration),
    )
}
