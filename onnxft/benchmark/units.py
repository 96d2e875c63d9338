"""Numbers as text."""

from __future__ import annotations

from onnxft.benchmark.statistics import Ratio


def format_seconds(seconds: float) -> str:
    """Three significant digits in the unit that fits.

    >>> [format_seconds(s) for s in (0.0000421, 0.00421, 0.421, 4.21)]
    ['42.1 µs', '4.21 ms', '421 ms', '4.21 s']
    """
    if seconds >= 0.9995:
        return f"{digits(seconds)} s"
    return f"{digits(1e3 * seconds)} ms" if seconds >= 0.9995e-3 else f"{digits(1e6 * seconds)} µs"


def format_ratio(ratio: Ratio) -> str:
    """Value and spread with equally many decimals; a ratio without spread is the value alone.

    >>> [format_ratio(Ratio(*r)) for r in ((1.0, 0.0), (2.134, 0.096), (152.52, 41.96))]
    ['1.00', '2.13 ± 0.10', '153 ± 42']
    """
    decimals = 2 if ratio.value < 9.995 else 1 if ratio.value < 99.95 else 0
    value, spread = f"{ratio.value:,.{decimals}f}", f"{ratio.spread:,.{decimals}f}"
    return f"{value} ± {spread}" if ratio.spread else value


def megabytes(size: float) -> str:
    """Of bytes, without the unit."""
    return f"{size / 1e6:,.0f}"


def scientific(value: float) -> str:
    """Two significant digits and the power of ten."""
    return f"{value:.1e}" if value else "0"


def digits(value: float) -> str:
    """Three significant digits, or more where the integer part has them."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}"
