"""Numbers as people read them."""

import math

_SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def seconds(value: float) -> str:
    """Four significant digits of a duration."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if abs(value) >= scale:
            return f"{_four_digits(value / scale)} {unit}"
    return f"{_four_digits(value / 1e-9)} ns"


def size(value: float) -> str:
    """A number of bytes in binary units, exact below one KiB."""
    for scale, unit in _BINARY:
        if abs(value) >= scale:
            return f"{_four_digits(value / scale)} {unit}"
    return f"{value:.0f} B"


def short_size(value: float) -> str:
    """A number of bytes in two or three digits, for a table."""
    for scale, unit in _BINARY:
        if abs(value) >= scale:
            scaled = value / scale
            return f"{scaled:.{1 if abs(scaled) < 9.95 else 0}f} {unit}"
    return f"{value:.0f} B"


def rate(value: float, unit: str) -> str:
    """A quantity with an SI prefix, such as ``812 GB/s``."""
    for scale, prefix in _SI:
        if abs(value) >= 0.9995 * scale:  # three digits of the next smaller unit would round up to this one
            return f"{value / scale:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent(value: float, *, signed: bool = False) -> str:
    """A fraction in per cent, one decimal while it is small."""
    digits = 1 if abs(value) < 0.995 else 0
    return f"{100 * value:{'+' if signed else ''}.{digits}f} %"


def quantity(value: float, unit: str) -> str:
    """A metric's value in its unit."""
    if unit == "s":
        return seconds(value)
    if unit == "B":
        return size(value) if value % 1024 == 0 else f"{value:.0f} B"
    if unit.endswith("/s"):
        return rate(value, unit)
    return f"{value:.4g}" if unit == "1" else f"{value:.4g} {unit}"


def _four_digits(value: float) -> str:
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}" if value else "0"
