// exp and log in double: the bits of kernels/mathematics.py, on every machine.
//
// Each line repeats one of that file, in its order, without a fused multiply-add; the coefficients
// and their source stand there. Read by translation
// units with different instruction set flags: everything is in an anonymous namespace.
#pragma once
#include <cmath>
#include <cstdint>

namespace seriatim {
namespace {

constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
constexpr double kInverseLn2 = 1.44269504088896338700;
constexpr double kTiny = -700.0;  // exp below is taken as 0
// Added to a double below 2^51, it leaves the nearest integer (ties to even) in the last bits.
constexpr double kInteger = 0x1.8p52;
constexpr uint64_t kIntegerBits = __builtin_bit_cast(uint64_t, kInteger);

// e^x for x <= 700; 0 below -700, and for what is no number.
inline double exp(double x) {
  if (!(x >= kTiny)) return 0.0;
  const double k = (x * kInverseLn2 + kInteger) - kInteger;
  const double high = x - k * kLn2High, low = k * kLn2Low;
  const double r = high - low;
  const double t = r * r;
  const double c =
      r - t * (1.66666666666666019037e-01 +
               t * (-2.77777777770155933842e-03 +
                    t * (6.61375632143793436117e-05 +
                         t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))));
  const double y = 1.0 - ((low - (r * c) / (2.0 - c)) - high);
  return std::ldexp(y, static_cast<int>(k));
}

// Natural logarithm of a positive normal x.
inline double log(double x) {
  int exponent;
  double m = std::frexp(x, &exponent);  // in [0.5, 1)
  const bool low = m < 0.70710678118654752440;
  if (low) m = 2.0 * m;
  const double k = low ? exponent - 1 : exponent;
  const double f = m - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  const double w = z * z;
  const double even = w * (3.999999999940941908e-01 +
                           w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z * (6.666666666666735130e-01 +
                          w * (2.857142874366239149e-01 +
                               w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  const double half = 0.5 * f * f;
  return k * kLn2High - ((half - (s * (half + (odd + even)) + k * kLn2Low)) - f);
}

// Gumbel noise of a random 32-bit word: -log(-log u), u in (0, 1).
inline double gumbel(uint64_t word) {
  return -log(-log((static_cast<double>(word) + 0.5) / 0x1p32));
}

// round(exp(z) * 2^40), z <= 0: the integer weight of contracts.md, 11.
inline uint64_t weight(double z) {
  return __builtin_bit_cast(uint64_t, exp(z) * 0x1p40 + kInteger) - kIntegerBits;
}

}  // namespace
}  // namespace seriatim
