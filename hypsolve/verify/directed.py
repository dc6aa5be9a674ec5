"""Non-negative numbers as whole multiples of 2**-200, rounded down or up in every operation.

A function with `up` false returns a number that is at most the true one, and with `up` true one
that is at least the true one. Operands must be rounded to match: in a quotient, the divisor is
rounded the other way.
"""

from __future__ import annotations

from decimal import Context, Decimal
from fractions import Fraction

BITS = 200
ONE = 1 << BITS

_DIGITS = Context(prec=60)
_ERROR = Fraction(1, 10**55)  # relative, of a power whose logarithm is small


def fixed(value: float | Fraction, up: bool) -> int:
    """Return a finite number."""
    top, bottom = value.as_integer_ratio()
    return -((-top << BITS) // bottom) if up else (top << BITS) // bottom


def times(a: int, b: int, up: bool) -> int:
    """Return a product."""
    return -((-a * b) >> BITS) if up else (a * b) >> BITS


def over(a: int, b: int, up: bool) -> int:
    """Return a quotient; the divisor is positive."""
    return -((-a << BITS) // b) if up else (a << BITS) // b


def half(a: int, up: bool) -> int:
    """Return half of a number."""
    return -(-a // 2) if up else a // 2


def power(base: float, exponent: int, up: bool) -> int:
    """Return a power of a base in 0..1; 0 to the power of 0 is 1.

    `decimal` rounds logarithms and exponentials correctly in 60 digits. The result is widened
    by far more than these errors.
    """
    if exponent == 0 or base == 1.0:
        return ONE
    if base == 0.0:
        return 0
    whole = _DIGITS.divide(Decimal(exponent), Decimal(ONE))
    log = _DIGITS.multiply(_DIGITS.ln(Decimal(base)), whole)
    if log < -1000:
        return 1 if up else 0  # exp(-1000) is below 2**-200
    value = Fraction(_DIGITS.exp(log))
    error = value * (1 - Fraction(log)) * _ERROR
    return fixed(min(value + error, Fraction(1)) if up else value - error, up)
