// The body of each instruction set's unit: `SERIATIM_SCAN(kName, "name")` fills its table of loops.
// Include only in scan_*.cpp, after setting SERIATIM_WIDTH: 16, 8 or 4 f32 lanes of a register.
#pragma once
#if SERIATIM_WIDTH > 4 || defined(__SSE2__)
#include <immintrin.h>
#endif

#include "mathematics.h"
#include "scan.h"

#define SERIATIM_INLINE inline __attribute__((always_inline))

namespace seriatim {
namespace {

constexpr int kLanes = SERIATIM_WIDTH / 2;  // of 64 bits
using Doubles = double __attribute__((vector_size(kLanes * 8)));
using Longs = int64_t __attribute__((vector_size(kLanes * 8)));
using Unsigned = uint64_t __attribute__((vector_size(kLanes * 8)));
using Halves = float __attribute__((vector_size(kLanes * 4)));
using Four = float __attribute__((vector_size(16)));
using Floats = float __attribute__((vector_size(kLanes * 8)));

template <class V>
SERIATIM_INLINE V unaligned(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

#if SERIATIM_WIDTH == 16
SERIATIM_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
SERIATIM_INLINE Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
SERIATIM_INLINE Unsigned multiply(Unsigned a, Unsigned b) {
  return (Unsigned)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
#elif SERIATIM_WIDTH == 8
SERIATIM_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
SERIATIM_INLINE Floats greater(Floats a, Floats b) { return _mm256_max_ps(a, b); }
SERIATIM_INLINE Unsigned multiply(Unsigned a, Unsigned b) {
  return (Unsigned)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
#else
SERIATIM_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return a * b + c; }
#ifdef __SSE2__
SERIATIM_INLINE Floats greater(Floats a, Floats b) { return _mm_max_ps(a, b); }
SERIATIM_INLINE Unsigned multiply(Unsigned a, Unsigned b) {
  return (Unsigned)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
#else
SERIATIM_INLINE Floats greater(Floats a, Floats b) { return a > b ? a : b; }
SERIATIM_INLINE Unsigned multiply(Unsigned a, Unsigned b) {
  return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
}
#endif
#endif

SERIATIM_INLINE Doubles all(double x) { return x - Doubles{}; }

// ---- maxima ------------------------------------------------------------------------------------

using Ints = int32_t __attribute__((vector_size(kLanes * 8)));

SERIATIM_INLINE float greatest_lane(Floats x) {
  Four part[kLanes / 2];  // lanes one by one would be slow
  __builtin_memcpy(part, &x, sizeof part);
  for (int j = 1; j < kLanes / 2; ++j) part[0] = part[j] > part[0] ? part[j] : part[0];
  const Four f = part[0];
  const float a = f[0] > f[1] ? f[0] : f[1], b = f[2] > f[3] ? f[2] : f[3];
  return a > b ? a : b;
}

// Of the vectors of a run; of NaN and b, the greater is b.
template <class Vector>
SERIATIM_INLINE float run_maximum(Vector vector) {
  constexpr int kVectors = kRun / (2 * kLanes), kBest = 4;
  Floats best[kBest];
  for (int j = 0; j < kBest; ++j) best[j] = Floats{} - INFINITY;
  for (int j = 0; j < kVectors; ++j) best[j % kBest] = greater(vector(j), best[j % kBest]);
  for (int j = 1; j < kBest; ++j) best[0] = greater(best[j], best[0]);
  return greatest_lane(best[0]);
}

SERIATIM_INLINE Ints lane_bits() {
  Ints bits{};
  for (int lane = 0; lane < 2 * kLanes; ++lane) bits[lane] = 1 << lane;
  return bits;
}

// Of each run of kRun values, those that are visible; NaN is passed over.
void maxima(const float* x, int64_t n, const uint64_t* with, const uint64_t* without, double* out) {
  for (int64_t i = 0; i < n; i += kRun) {
    const float* values = x + i;
    float rest[kRun];
    if (n - i < kRun) {
      for (int64_t j = 0; j < kRun; ++j) rest[j] = i + j < n ? x[i + j] : -INFINITY;
      values = rest;
    }
    const uint64_t visible = (with ? with[i / kRun] : ~0ull) & ~(without ? without[i / kRun] : 0);
    const auto plain = [=](int j) { return unaligned<Floats>(values + j * 2 * kLanes); };
    const auto some = [=](int j) {
      const Ints bits = Ints{} + static_cast<int32_t>(visible >> j * 2 * kLanes);
      return (bits & lane_bits()) != 0 ? plain(j) : Floats{} - INFINITY;
    };
    *out++ = !visible ? -INFINITY : ~visible ? run_maximum(some) : run_maximum(plain);
  }
}

void widen(const float* x, int64_t n, double* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Doubles wide = __builtin_convertvector(unaligned<Halves>(x + i), Doubles);
    const Doubles number = wide == wide ? wide : all(-INFINITY);
    __builtin_memcpy(out + i, &number, sizeof number);
  }
  for (; i < n; ++i) out[i] = x[i] == x[i] ? x[i] : -INFINITY;
}

// ---- weights -----------------------------------------------------------------------------------

// Integer weights, where the sign of `doubt` stays 0: e^z by its Taylor series to r^12 differs by
// less than 2^-49 of itself from the definition's (|r| <= ln 2 / 2: the rest of the series is
// 2^-52, all roundings of both are as little again), and nothing twice as near to a half is rounded
// here. Elsewhere any value.
SERIATIM_INLINE Unsigned rough_weights(Doubles z, Longs& doubt) {
  z = z < all(-40.0) ? all(-40.0) : z;  // far below half a unit
  const Doubles shifted = z * kInverseLn2 + kInteger;
  const Doubles k = shifted - kInteger;
  const Doubles r = (z - k * kLn2High) - k * kLn2Low;
  Doubles p = fma(all(1.0 / 479001600), r, all(1.0 / 39916800));
  constexpr double kTaylor[] = {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                1.0 / 720,     1.0 / 120,    1.0 / 24,    1.0 / 6,
                                1.0 / 2,       1.0,          1.0};
  for (const double c : kTaylor) p = fma(p, r, all(c));
  const Doubles y = (Doubles)((Unsigned)p + (((Unsigned)shifted + 40) << 52));
  const Doubles rounded = y + kInteger;
  const Doubles off = y - (rounded - kInteger);
  const Doubles far = (Doubles)((Longs)off & INT64_MAX);
  doubt |= (Longs)((0.5 - y * 0x1p-48) - far);
  return (Unsigned)rounded - kIntegerBits;
}

SERIATIM_INLINE bool any_negative(Longs v) {
  int64_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= v[lane];
  return bits < 0;
}

// Sum of the weights of `z(i)`, whose lanes `lanes(i)` gives from i on.
template <class Lanes, class One>
SERIATIM_INLINE uint64_t sum(int64_t n, Lanes lanes, One z) {
  uint64_t sum = 0;
  int64_t i = 0;
  for (; i + kRun <= n; i += kRun) {
    Unsigned total{};
    Longs doubt{};
    for (int64_t j = i; j < i + kRun; j += kLanes) total += rough_weights(lanes(j), doubt);
    if (any_negative(doubt))
      for (int64_t j = i; j < i + kRun; ++j) sum += weight(z(j));
    else
      for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
  }
  for (; i < n; ++i) sum += weight(z(i));
  return sum;
}

uint64_t total(const float* x, int64_t n, double top) {
  return sum(
      n,
      [=](int64_t i) { return __builtin_convertvector(unaligned<Halves>(x + i), Doubles) - top; },
      [=](int64_t i) { return x[i] - top; });
}

uint64_t total_scaled(const double* x, int64_t n, double top, double temperature) {
  return sum(
      n, [=](int64_t i) { return (unaligned<Doubles>(x + i) - top) / temperature; },
      [=](int64_t i) { return (x[i] - top) / temperature; });
}

// round(w * -z), w a weight of z.
SERIATIM_INLINE uint64_t loss(uint64_t w, double z) {
  if (w == 0) return 0;  // z may be infinite
  return __builtin_bit_cast(uint64_t, static_cast<double>(w) * -z + kInteger) - kIntegerBits;
}

void moments(const double* x, int64_t n, double top, double temperature, Moments& sums) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Longs doubt{};
    Doubles z = (unaligned<Doubles>(x + i) - top) / temperature;
    z = z < all(-40.0) ? all(-40.0) : z;
    Unsigned w = rough_weights(z, doubt);
    if (any_negative(doubt))
      for (int lane = 0; lane < kLanes; ++lane) w[lane] = weight((x[i + lane] - top) / temperature);
    const Doubles exact = (Doubles)(w + kIntegerBits) - kInteger;
    const Unsigned lost = (Unsigned)(exact * -z + kInteger) - kIntegerBits;
    for (int lane = 0; lane < kLanes; ++lane) sums.total += w[lane], sums.lost += lost[lane];
  }
  for (; i < n; ++i) {
    const double z = (x[i] - top) / temperature;
    const uint64_t w = weight(z);
    sums.total += w, sums.lost += loss(w, z);
  }
}

void weigh(const double* z, int64_t n, uint64_t* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Longs doubt{};
    const Unsigned w = rough_weights(unaligned<Doubles>(z + i), doubt);
    __builtin_memcpy(out + i, &w, sizeof w);
    if (any_negative(doubt))
      for (int j = 0; j < kLanes; ++j) out[i + j] = weight(z[i + j]);
  }
  for (; i < n; ++i) out[i] = weight(z[i]);
}

// ---- noise -------------------------------------------------------------------------------------

SERIATIM_INLINE Unsigned lane_numbers() {
  Unsigned v{};
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane;
  return v;
}

// Random words of a run of ids, [id & 3][id >> 2] in the low halves; the greatest. A lane's high
// half may hold anything: products read the low halves.
uint64_t noise(int64_t run, Key key, uint64_t* words) {
  constexpr int64_t kGroups = kRun / 4;
  constexpr int kPair = 2;  // registers side by side: a round waits for its products
  const Unsigned first = Unsigned{} + 0xD2511F53, second = Unsigned{} + 0xCD9E8D57;
  Unsigned greatest{};
  for (int64_t i = 0; i < kGroups; i += kPair * kLanes) {
    Unsigned w[kPair], x[kPair], y[kPair], z[kPair];
    for (int p = 0; p < kPair; ++p) {
      w[p] = lane_numbers() + (run * kGroups + i + p * kLanes);
      x[p] = Unsigned{} + key.position, y[p] = Unsigned{} + key.sample, z[p] = Unsigned{} + key.use;
    }
    auto low = static_cast<uint32_t>(key.seed), high = static_cast<uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (int p = 0; p < kPair; ++p) {
        const Unsigned a = multiply(w[p], first), b = multiply(y[p], second);
        w[p] = (b >> 32) ^ x[p] ^ uint64_t { low }, x[p] = b;
        y[p] = (a >> 32) ^ z[p] ^ uint64_t { high }, z[p] = a;
      }
      low += 0x9E3779B9, high += 0xBB67AE85;
    }
    for (int p = 0; p < kPair; ++p) {
      const Unsigned four[] = {w[p], x[p], y[p], z[p]};
      for (int j = 0; j < 4; ++j) {
        const Unsigned word = four[j] & 0xFFFFFFFF;
        greatest = (Longs)word > (Longs)greatest ? word : greatest;
        __builtin_memcpy(words + j * kGroups + i + p * kLanes, &word, sizeof word);
      }
    }
  }
  uint64_t best = 0;
  for (int lane = 0; lane < kLanes; ++lane) best = greatest[lane] > best ? greatest[lane] : best;
  return best;
}

}  // namespace
}  // namespace seriatim

#define SERIATIM_SCAN(symbol, name)                                                      \
  namespace seriatim {                                                                   \
  const Scan symbol = {name, maxima, widen, total, total_scaled, moments, weigh, noise}; \
  }
