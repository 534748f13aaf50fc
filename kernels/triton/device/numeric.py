"""Arithmetic that the kernels share: 8-bit floats as 16 or 32 bits, tanh."""

from enum import IntEnum

import triton
import triton.language as tl

__all__ = ["Stored", "narrow", "tanh", "widen"]


class Stored(IntEnum):
    """How a cache's elements become the queries' dtype."""

    SAME = 0  # they are of it
    CAST = 1  # by an instruction of the device
    E4M3 = 2  # by bits, on devices without such an instruction
    E5M2 = 3
    E4M3FNUZ = 4
    E5M2FNUZ = 5


@triton.jit
def _from_bits(x, SIGN_SHIFT: tl.constexpr, SCALE: tl.constexpr):
    """The bits of an 8-bit float as those of a float16 of the same value over SCALE."""
    wide = x.to(tl.uint16)
    bits = ((wide & 0x7F) << SIGN_SHIFT) | ((wide & 0x80) << 8)
    return bits.to(tl.float16, bitcast=True).to(tl.float32) * SCALE


@triton.jit
def widen(x, dtype: tl.constexpr, STORED: tl.constexpr):
    """Cached elements in the dtype of the arithmetic.

    With e exponent bits of bias b, the bits moved under a float16's exponent (bias 15) stand for the
    value times 2^(b - 15), subnormals included.
    """
    if STORED == 0:
        return x
    elif STORED == 1:
        return x.to(dtype)
    elif STORED == 2:
        value = _from_bits(x, 7, 256.0)
        return tl.where((x & 0x7F) == 0x7F, float("nan"), value).to(dtype)
    elif STORED == 3:
        return (x.to(tl.uint16) << 8).to(tl.float16, bitcast=True).to(dtype)
    elif STORED == 4:
        value = _from_bits(x, 7, 128.0)
        return tl.where(x == 0x80, float("nan"), value).to(dtype)
    else:
        # Exponent 31 is a number here and infinity in float16: shift the exponent into float32's.
        wide = x.to(tl.uint32)
        bits = ((wide & 0x7F) << 21) | ((wide & 0x80) << 24)
        value = bits.to(tl.float32, bitcast=True) * 2596148429267413814265248164610048.0  # 2^111
        return tl.where(x == 0x80, float("nan"), value).to(dtype)


@triton.jit
def narrow(x, STORED: tl.constexpr):
    """Finite float32 within the range of an 8-bit float, or NaN, as its bits: to nearest even."""
    FNUZ: tl.constexpr = STORED >= 4
    MANTISSA: tl.constexpr = 3 if STORED % 2 == 0 else 2
    BIAS: tl.constexpr = (7 if STORED % 2 == 0 else 15) + (1 if FNUZ else 0)
    SHIFT: tl.constexpr = 23 - MANTISSA
    bits = x.to(tl.uint32, bitcast=True)
    sign = (bits >> 24) & 0x80
    bits = bits & 0x7FFFFFFF
    normal = ((bits + ((bits >> SHIFT) & 1) + ((1 << (SHIFT - 1)) - 1)) >> SHIFT) - (
        (127 - BIAS) << MANTISSA
    )
    # Added to 2^23 of its smallest steps, a number loses all below one step, to nearest even.
    STEPS: tl.constexpr = (127 + 23 + 1 - BIAS - MANTISSA) << 23
    shifted = bits.to(tl.float32, bitcast=True) + tl.full(x.shape, STEPS, tl.uint32).to(
        tl.float32, bitcast=True
    )
    subnormal = shifted.to(tl.uint32, bitcast=True) - STEPS
    code = tl.where(bits < ((127 + 1 - BIAS) << 23), subnormal, normal)
    nan = bits > 0x7F800000
    if FNUZ:
        code = tl.where(nan, 0x80, tl.where(code == 0, 0, code | sign))
    else:
        code = tl.where(nan, 0x7F, code) | sign
    return code.to(tl.uint8)


@triton.jit
def tanh(x):
    """The hyperbolic tangent, by the exponential that every device has."""
    e = tl.math.exp2(-2.885390081777927 * tl.abs(x))
    t = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -t, t)
