"""exp and log of our own, in float64, and the counter-based generator: the same bits everywhere.

numpy's and libm's exp and log differ from each other in thousands of values, so ids would depend on
the machine. These use only IEEE +, -, *, / and exact scaling, in a fixed order and without fused
multiply-adds; the C++ sampler repeats them from the same coefficients. Error below 1 ulp
(fdlibm e_exp.c and e_log.c, Sun Microsystems 1993).
"""

import numpy as np

LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
INVERSE_LN2 = 1.44269504088896338700
EXP = (
    1.66666666666666019037e-01,
    -2.77777777770155933842e-03,
    6.61375632143793436117e-05,
    -1.65339022054652515390e-06,
    4.13813679705723846039e-08,
)
LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
TINY = -700.0  # exp below is taken as 0: far under the smallest weight the sampler counts


def exp(x: np.ndarray) -> np.ndarray:
    """e^x for float64 x <= 700; exactly 0 below -700."""
    small = x < TINY
    x = np.where(small, 0.0, x)
    k = np.rint(x * INVERSE_LN2)
    high, low = x - k * LN2_HIGH, k * LN2_LOW
    r = high - low
    t = r * r
    c = r - t * (EXP[0] + t * (EXP[1] + t * (EXP[2] + t * (EXP[3] + t * EXP[4]))))
    y = 1.0 - ((low - (r * c) / (2.0 - c)) - high)
    return np.where(small, 0.0, np.ldexp(y, k.astype(np.int32)))


def log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of positive normal float64 x."""
    m, k = np.frexp(x)  # m in [0.5, 1)
    low = m < 0.70710678118654752440
    m, k = np.where(low, 2.0 * m, m), np.where(low, k - 1, k).astype(np.float64)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (LOG[1] + w * (LOG[3] + w * LOG[5]))
    odd = z * (LOG[0] + w * (LOG[2] + w * (LOG[4] + w * LOG[6])))
    half = 0.5 * f * f
    return k * LN2_HIGH - ((half - (s * (half + (odd + even)) + k * LN2_LOW)) - f)


def philox(counter: np.ndarray, key: int) -> np.ndarray:
    """Philox4x32-10: four random 32-bit words for each counter.

    Args:
        counter: uint32 [N, 4].
        key: 64 bits.

    Returns:
        uint32 [N, 4].

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11.
    """
    # Each word is below 2^32 in 64 bits, so that products fit.
    w, x, y, z = np.ascontiguousarray(counter.T).astype(np.uint64)  # [N] each
    low, high = key & 0xFFFFFFFF, key >> 32
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = w * np.uint64(0xD2511F53), y * np.uint64(0xCD9E8D57)
        w, x = (b >> shift) ^ x ^ np.uint64(low), b & mask
        y, z = (a >> shift) ^ z ^ np.uint64(high), a & mask
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([w, x, y, z], -1).astype(np.uint32)
