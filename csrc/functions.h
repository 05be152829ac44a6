// exp, tanh, erf and the turn of an angle: fixed polynomials, the same bits in every instruction
// set. libm's differ between versions and from numpy's in thousands of values.
#pragma once
#include "ops.h"
#include "simd.h"

namespace seriatim {
namespace {

template <int N>
SERIATIM_INLINE f32x16 polynomial(f32x16 x, const float (&coefficients)[N]) {  // highest first
  f32x16 y = all(coefficients[0]);
  for (int i = 1; i < N; ++i) y = fma(y, x, all(coefficients[i]));
  return y;
}

SERIATIM_INLINE f32x16 power_of_two(const Ints (&n)[kParts]) {
  f32x16 v;
  SERIATIM_EACH v.part[i] = (Vec)((n[i] + 127) << 23);
  return v;
}

// Within 1 ulp, subnormal results included; exactly 0 at -inf, +inf at +inf, NaN at NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; coefficients of Cephes expf. 2^n is applied in two halves, so
// that n of -150 .. 128 rounds once.
SERIATIM_INLINE f32x16 exp(f32x16 x) {
  x = select(x < all(-104.0f), all(-104.0f), x);
  x = select(x > all(89.0f), all(89.0f), x);
  const f32x16 magic = all(0x1.8p23f);
  const f32x16 shifted = fma(x, all(0x1.715476p0f), magic);
  const f32x16 n = shifted - magic;
  f32x16 r = fma(n, all(-0.693359375f), x);  // n times 9 bits is exact
  r = fma(n, all(2.12194440e-4f), r);
  const f32x16 p = polynomial(r, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f});
  const f32x16 y = fma(p, r * r, r) + all(1.0f);
  Ints half[kParts], rest[kParts];
  SERIATIM_EACH {
    const Ints whole = (Ints)shifted.part[i] - (Ints)magic.part[i];
    half[i] = whole >> 1;
    rest[i] = whole - half[i];
  }
  return y * power_of_two(half) * power_of_two(rest);
}

// Within 2 ulp; Cephes tanhf below 0.625, 1 - 2 / (e^2x + 1) above.
SERIATIM_INLINE f32x16 tanh(f32x16 x) {
  const f32x16 z = x * x, size = abs(x);
  const f32x16 p = polynomial(z, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f,
                                  1.33314422036e-1f, -3.33332819422e-1f});
  const f32x16 far = all(1.0f) - all(2.0f) / (exp(size + size) + all(1.0f));
  const f32x16 turned = select(x < zero(), zero() - far, far);
  return select(size > all(0.625f), turned, fma(p * z, x, x));
}

// 1 - erf(x), with a small relative error also where it is small: Cephes erff below 1, erfcf above.
SERIATIM_INLINE f32x16 erfc(f32x16 x) {
  const f32x16 z = x * x, size = abs(x);
  const f32x16 near =
      polynomial(z, {7.853861353153693e-5f, -8.010193625184903e-4f, 5.188327685732524e-3f,
                     -2.685381193529856e-2f, 1.128358514861418e-1f, -3.761262582423300e-1f,
                     1.128379165726710e+0f});
  const f32x16 q = all(1.0f) / size, w = q * q;
  const f32x16 middle =
      polynomial(w, {2.326819970068386e-2f, -1.387039388740657e-1f, 3.687424674597105e-1f,
                     -5.824733027278666e-1f, 6.210004621745983e-1f, -4.944515323274145e-1f,
                     3.404879937665872e-1f, -2.741127028184656e-1f, 5.638259427386472e-1f});
  const f32x16 tail =
      polynomial(w, {-1.047766399936249e+1f, 1.297719955372516e+1f, -7.495518717768503e+0f,
                     2.921019019210786e+0f, -1.015265279202700e+0f, 4.218463358204948e-1f,
                     -2.820767439740514e-1f, 5.641895067754075e-1f});
  const f32x16 above = exp(zero() - z) * q * select(size < all(2.0f), middle, tail);
  const f32x16 far = select(x < zero(), all(2.0f) - above, above);
  return select(size < all(1.0f), all(1.0f) - x * near, far);
}

// cos and sin of an angle in radians below 2^31 in size, to 1e-15; NaN beyond. Cody and Waite:
// pi/2 in parts of 22 bits, so that each part's product with a 31-bit n is exact; then fdlibm's
// polynomials on [-pi/4, pi/4].
struct Turn {
  double cos, sin;
};

SERIATIM_INLINE Turn turn(double x) {
  if (!(x < 0x1p31 && x > -0x1p31)) return {__builtin_nan(""), __builtin_nan("")};
  constexpr double kMagic = 0x1.8p52;
  const double shifted = x * 0x1.45f306dc9c883p-1 + kMagic;  // 2 / pi
  const double n = shifted - kMagic;
  uint64_t quarter;
  __builtin_memcpy(&quarter, &shifted, sizeof quarter);
  double r = x - n * 0x1.921fbp+0;
  r -= n * 0x1.5110bp-22;
  r -= n * 0x1.184698p-44;
  r -= n * 0x1.3198a2e037073p-69;
  const double z = r * r;
  const double s = 1.58969099521155010221e-10;
  const double sine = r + r * z *
                              (-1.66666666666666324348e-01 +
                               z * (8.33333333332248946124e-03 +
                                    z * (-1.98412698298579493134e-04 +
                                         z * (2.75573137070700676789e-06 +
                                              z * (-2.50507602534068634195e-08 + z * s)))));
  const double cosine =
      1.0 - 0.5 * z +
      z * z *
          (4.16666666666666019037e-02 +
           z * (-1.38888888888741095749e-03 +
                z * (2.48015872894767294178e-05 +
                     z * (-2.75573143513906633035e-07 +
                          z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
  switch (quarter & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

SERIATIM_INLINE f32x16 activation(f32x16 x, int64_t kind) {
  switch (kind) {
    case kSilu:
      return x / (all(1.0f) + exp(zero() - x));
    case kGelu:
      return all(0.5f) * x * erfc(x * all(-0x1.6a09e6p-1f));  // -sqrt(1/2)
    case kGeluTanh: {
      const f32x16 cube = all(0.044715f) * x * x * x;
      return all(0.5f) * x * (all(1.0f) + tanh(all(0x1.988454p-1f) * (x + cube)));  // sqrt(2/pi)
    }
    default: {
      const f32x16 y = select(x < zero(), zero(), x);  // NaN stays
      return kind == kRelu2 ? y * y : y;
    }
  }
}

}  // namespace
}  // namespace seriatim
