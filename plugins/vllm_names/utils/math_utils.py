"""Whole numbers: dividing, rounding, powers of two."""

__all__ = [
    "cdiv",
    "largest_power_of_2_divisor",
    "next_power_of_2",
    "prev_power_of_2",
    "round_down",
    "round_up",
]


def cdiv(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    quotient, rest = divmod(a, b)
    return quotient + bool(rest)


def round_up(x: int, y: int) -> int:
    """The smallest multiple of `y` that is not below `x`."""
    return cdiv(x, y) * y


def round_down(x: int, y: int) -> int:
    """The largest multiple of `y` that is not above `x`."""
    return x - x % y


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below `n`; 1 for everything below."""
    return 1 << max(n - 1, 0).bit_length()


def prev_power_of_2(n: int) -> int:
    """The largest power of two that is not above `n`; 0 where there is none."""
    return 1 << n.bit_length() - 1 if n > 0 else 0


def largest_power_of_2_divisor(n: int) -> int:
    """The largest power of two that divides `n`."""
    return n & -n
