"""Bounds on the least z with ``f(z) <= z``, where f(z) / z does not rise between jumps of f."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CLOSE_BITS = 56  # the bounds are this close if rounding allows it
BELOW_BITS = 40  # a number this close to a jump counts as below it


def least_root(f: Callable[[int, bool], int], top: int, jumps: Sequence[int], up: bool) -> int:
    """Return a bound on the least z with ``f(z) <= z``; it is at most `top`.

    Parameters
    ----------
    f : callable
        ``f(z, up)`` bounds f(z) from below or above. f does not fall in z, and f(z) / z does
        not rise but at jumps.
    top : int
        Above it, the answer is `top`.
    jumps : sequence of int
        Numbers z, rounded down, above which f may be larger at once.
    up : bool
        Whether to bound the root from above.

    Notes
    -----
    From below: ``f(z) >= z`` bounds all smaller z behind the last jump before it. Each jump
    bounds those before it in the same way. From above: f(z) - z is not negative at 0 and only
    jumps up, so that ``f(z) <= z`` leaves a root below.
    """
    guess = _guess(f, top)
    for bits in range(CLOSE_BITS, 0, -4):
        z = guess + (guess >> bits) + 1 if up else guess - (guess >> bits)
        if up and z >= top:
            return top
        if up and f(z, True) <= z:
            return z
        if not up and f(z, False) >= z:
            return _below_jumps(f, z, jumps)
    return top if up else 0


def has_root(f: Callable[[int, bool], int], top: tuple[int, int], jumps: Sequence[int]) -> bool:
    """Return whether ``f(z) <= z`` at the end of some part between jumps, or at the top.

    Parameters
    ----------
    f : callable
        As in `least_root`.
    top : tuple of int
        The largest z, rounded down and up.
    jumps : sequence of int
        As in `least_root`. Numbers a little below them are tried, so that no rounding of them
        is above.
    """
    low, high = top
    if f(high, True) <= low:
        return True
    ends = (jump - (jump >> BELOW_BITS) - 1 for jump in jumps)
    return any(f(z, True) <= z for z in ends if 0 < z <= low)


def _below_jumps(f: Callable[[int, bool], int], z: int, jumps: Sequence[int]) -> int:
    """Return a bound from below that also holds before each jump."""
    for at in jumps:
        if at < z and f(at, False) < at + 1:
            return least_root(f, at, [each for each in jumps if each < at], False)
    return z


def _guess(f: Callable[[int, bool], int], top: int) -> int:
    """Return about the root: regula falsi (the Illinois variant), in whole numbers."""
    low, f_low = 0, f(0, False)
    high, f_high = top, f(top, False) - top
    if f_high >= 0:
        return top
    side = 0
    for _ in range(80):
        if f_low <= 0 or high - low <= high >> (CLOSE_BITS + 8):
            break
        z = (low * f_high - high * f_low) // (f_high - f_low)
        if not low < z < high:
            z = (low + high) // 2
        f_z = f(z, False) - z
        if abs(f_z) <= z >> (CLOSE_BITS + 8):
            return z
        if f_z > 0:
            f_high = f_high // 2 if side == 1 else f_high
            low, f_low, side = z, f_z, 1
        else:
            f_low = f_low // 2 if side == -1 else f_low
            high, f_high, side = z, f_z, -1
    return high
