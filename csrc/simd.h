// Sixteen f32 lanes with the same meaning, to the bit, in every instruction set.
//
// A translation unit sets SERIATIM_WIDTH, the f32 lanes of one register: 16 (AVX-512), 8 (AVX2) or
// 4 (plain: what the compiler's baseline has, SSE2 or NEON). Everything is in an anonymous
// namespace: code compiled with AVX flags must never be the copy that another unit links to.
//
// bf16 is widened and multiplied as f32 everywhere. AVX-512's vpdpbf16ps would be twice as fast,
// but adds in pairs, to its own rules for subnormals: other bits than AVX2's (contracts.md, 2).
#pragma once
#include <cstdint>
#if SERIATIM_WIDTH > 4
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// SERIATIM_SMALL: for sanitizers, whose checks in all that is inlined take a quarter of an hour to
// compile.
#ifdef SERIATIM_SMALL
#define SERIATIM_INLINE inline
#define SERIATIM_INLINE_LAMBDA
#define SERIATIM_UNROLL
#else
#define SERIATIM_INLINE inline __attribute__((always_inline))
#define SERIATIM_INLINE_LAMBDA __attribute__((always_inline))
#define SERIATIM_UNROLL _Pragma("GCC unroll 8")
#endif

namespace seriatim {
namespace {

constexpr int kLanes = 16;
constexpr int kWidth = SERIATIM_WIDTH;
constexpr int kParts = kLanes / kWidth;

using Vec = float __attribute__((vector_size(kWidth * 4)));
using Bits = uint32_t __attribute__((vector_size(kWidth * 4)));
using Ints = int32_t __attribute__((vector_size(kWidth * 4)));
using Vec4 = float __attribute__((vector_size(16)));

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

// ---- one register ------------------------------------------------------------------------------

SERIATIM_INLINE Vec splat(float x) { return x - Vec{}; }

template <class V>
SERIATIM_INLINE V unaligned(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

SERIATIM_INLINE Vec load_part(const float* p) { return unaligned<Vec>(p); }

// The value, which the compiler may neither load from memory again nor put off computing.
template <class V>
SERIATIM_INLINE V in_register(V v) {
#if SERIATIM_WIDTH > 4
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

#if SERIATIM_WIDTH == 16

SERIATIM_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
SERIATIM_INLINE Vec load_part(const f16* p) { return _mm512_cvtph_ps(unaligned<__m256i>(p)); }
SERIATIM_INLINE Vec load_part(const bf16* p) {
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(unaligned<__m256i>(p)), 16);
}
SERIATIM_INLINE Vec load_part(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unaligned<__m128i>(p)));
}

#elif SERIATIM_WIDTH == 8

SERIATIM_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
SERIATIM_INLINE Vec load_part(const f16* p) { return _mm256_cvtph_ps(unaligned<__m128i>(p)); }
SERIATIM_INLINE Vec load_part(const bf16* p) {
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(unaligned<__m128i>(p)), 16);
}
SERIATIM_INLINE Vec load_part(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
}

#else

#ifdef __FP_FAST_FMAF
SERIATIM_INLINE Vec fma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < kWidth; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
#else
// Without a fused instruction: a * b is exact in double and the sum is rounded to double, then to
// float. The second rounding differs from a single one only when the double lies half-way between
// two floats (29 low bits 100...0), or among the subnormals, where "half-way" moves: there, the C
// library's fma. A call, not inlined: inlined everywhere it took 45 s to compile.
__attribute__((noinline)) Vec fma(Vec a, Vec b, Vec c) {
  using Doubles = double __attribute__((vector_size(kWidth * 8)));
  using Longs = int64_t __attribute__((vector_size(kWidth * 8)));
  const Doubles sum = __builtin_convertvector(a, Doubles) * __builtin_convertvector(b, Doubles) +
                      __builtin_convertvector(c, Doubles);
  const Longs half_way = ((Longs)sum & 0x1fffffff) == 0x10000000;
  const Longs tiny = (sum < 0x1p-126) & (sum > -0x1p-126) & (sum != 0);
  const Longs doubt = half_way | tiny;
  if (__builtin_expect((doubt[0] | doubt[1] | doubt[2] | doubt[3]) == 0, 1))
    return __builtin_convertvector(sum, Vec);
  for (int i = 0; i < kWidth; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
#endif

using Halves = uint16_t __attribute__((vector_size(kWidth * 2)));

SERIATIM_INLINE Vec load_part(const bf16* p) {
  return (Vec)(__builtin_convertvector(unaligned<Halves>(p), Bits) << 16);
}

SERIATIM_INLINE Vec load_part(const int8_t* p) {
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = p[i];
  return v;
}

#ifdef __aarch64__
SERIATIM_INLINE Vec load_part(const f16* p) { return (Vec)vcvt_f32_f16(unaligned<float16x4_t>(p)); }
#else
// The exponent is rebiased by an exact product; 2^112 brings subnormals to their place as well.
SERIATIM_INLINE Vec load_part(const f16* p) {
  const Bits v = __builtin_convertvector(unaligned<Halves>(p), Bits);
  const Bits size = (v & 0x7fff) << 13, sign = (v & 0x8000) << 16;
  const Bits finite = (Bits)((Vec)size * 0x1p112f);
  const Bits special = size | 0x7f800000;  // infinity and NaN
  return (Vec)((size >= 0x0f800000 ? special : finite) | sign);
}
#endif

#endif

// Asks memory for what is wanted later; no access, so it may lie beyond an end.
SERIATIM_INLINE void fetch(const void* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i);
}

// ---- sixteen lanes -----------------------------------------------------------------------------

struct f32x16 {
  Vec part[kParts];
};
struct Mask {
  Ints part[kParts];
};  // a lane is all ones or all zeros

#define SERIATIM_EACH for (int i = 0; i < kParts; ++i)
#define SERIATIM_OPERATOR(op)                              \
  SERIATIM_INLINE f32x16 operator op(f32x16 a, f32x16 b) { \
    SERIATIM_EACH a.part[i] = a.part[i] op b.part[i];      \
    return a;                                              \
  }
#define SERIATIM_COMPARE(op)                                  \
  SERIATIM_INLINE Mask operator op(f32x16 a, f32x16 b) {      \
    Mask m;                                                   \
    SERIATIM_EACH m.part[i] = (Ints)(a.part[i] op b.part[i]); \
    return m;                                                 \
  }
SERIATIM_OPERATOR(+)
SERIATIM_OPERATOR(-)
SERIATIM_OPERATOR(*)
SERIATIM_OPERATOR(/)
SERIATIM_COMPARE(<)
SERIATIM_COMPARE(>)
#undef SERIATIM_OPERATOR
#undef SERIATIM_COMPARE

SERIATIM_INLINE f32x16 all(float x) {
  f32x16 v;
  SERIATIM_EACH v.part[i] = splat(x);
  return v;
}

SERIATIM_INLINE f32x16 zero() { return all(0.0f); }

SERIATIM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  SERIATIM_EACH c.part[i] = fma(a.part[i], b.part[i], c.part[i]);
  return c;
}

SERIATIM_INLINE f32x16 select(Mask m, f32x16 yes, f32x16 no) {
  SERIATIM_EACH no.part[i] = m.part[i] ? yes.part[i] : no.part[i];
  return no;
}

SERIATIM_INLINE f32x16 abs(f32x16 x) {
  SERIATIM_EACH x.part[i] = (Vec)((Bits)x.part[i] & 0x7fffffff);
  return x;
}

template <class W>
SERIATIM_INLINE f32x16 load(const W* p) {
  f32x16 v;
  SERIATIM_EACH v.part[i] = load_part(p + i * kWidth);
  return v;
}

SERIATIM_INLINE float widen(f16 x) {
  const f16 lanes[kWidth] = {x};
  return load_part(lanes)[0];
}

// The first n of sixteen, the others zero; reads nothing beyond them.
template <class W>
SERIATIM_INLINE f32x16 load_first(const W* p, int64_t n) {
  W lanes[kLanes] = {};
  __builtin_memcpy(lanes, p, n * sizeof(W));
  return load(lanes);
}

// Part by part: as one copy of 64 bytes it would drag the value through memory.
SERIATIM_INLINE void store(float* p, f32x16 v) {
  SERIATIM_EACH __builtin_memcpy(p + i * kWidth, &v.part[i], sizeof(Vec));
}
SERIATIM_INLINE void store_first(float* p, f32x16 v, int64_t n) {
  __builtin_memcpy(p, &v, n * sizeof(float));
}

// To the nearest bf16, ties to even, still as f32. NaN stays NaN: the carry must not reach it.
SERIATIM_INLINE f32x16 round_bf16(f32x16 x) {
  SERIATIM_EACH {
    const Bits bits = (Bits)x.part[i];
    const Bits even = bits + 0x7fff + ((bits >> 16) & 1);
    const Ints nan = (Ints)(x.part[i] != x.part[i]);
    x.part[i] = (Vec)((nan ? bits | 0x400000 : even) & 0xffff0000);
  }
  return x;
}

SERIATIM_INLINE void store(bf16* p, f32x16 v) {
  using Halves = uint16_t __attribute__((vector_size(kWidth * 2)));
  v = round_bf16(v);
  SERIATIM_EACH {
    const Halves halves = __builtin_convertvector((Bits)v.part[i] >> 16, Halves);
    __builtin_memcpy(p + i * kWidth, &halves, sizeof halves);
  }
}

// Rounded to whole numbers, halves to even; |v| must be below 128.
SERIATIM_INLINE void store(int8_t* p, f32x16 v) {
  using Bytes = int8_t __attribute__((vector_size(kWidth)));
  const Vec magic = splat(0x1.8p23f);
  SERIATIM_EACH {
    const Ints whole = (Ints)(v.part[i] + magic) - (Ints)magic;
    const Bytes bytes = __builtin_convertvector(whole, Bytes);
    __builtin_memcpy(p + i * kWidth, &bytes, sizeof bytes);
  }
}

template <class W>
SERIATIM_INLINE void store_first(W* p, f32x16 v, int64_t n) {
  W lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(W));
}

// Lanes n and above become zero.
SERIATIM_INLINE f32x16 keep_first(f32x16 v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  return load_first(lanes, n);
}

// ---- the one reduction tree: i + (i + 8), then + 4, + 2, + 1 ------------------------------------

// Down to four lanes, by `op` of two vectors.
template <class F>
SERIATIM_INLINE Vec4 fold(f32x16 v, F&& op) {
#if SERIATIM_WIDTH == 16
  const __m256 half = op(_mm512_castps512_ps256(v.part[0]), _mm512_extractf32x8_ps(v.part[0], 1));
  return op(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif SERIATIM_WIDTH == 8
  const __m256 half = op(v.part[0], v.part[1]);
  return op(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#else
  return op(op(v.part[0], v.part[2]), op(v.part[1], v.part[3]));
#endif
}

SERIATIM_INLINE Vec4 fold(f32x16 v) {
  return fold(v, [](auto a, auto b) SERIATIM_INLINE_LAMBDA { return a + b; });
}

SERIATIM_INLINE float reduce(f32x16 v) {
  const Vec4 f = fold(v);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

// Four sums at once, each by the same tree.
SERIATIM_INLINE Vec4 reduce(f32x16 a, f32x16 b, f32x16 c, f32x16 d) {
  const Vec4 p = fold(a), q = fold(b), r = fold(c), s = fold(d);
  const Vec4 pq =
      __builtin_shufflevector(p, q, 0, 1, 4, 5) + __builtin_shufflevector(p, q, 2, 3, 6, 7);
  const Vec4 rs =
      __builtin_shufflevector(r, s, 0, 1, 4, 5) + __builtin_shufflevector(r, s, 2, 3, 6, 7);
  return __builtin_shufflevector(pq, rs, 0, 2, 4, 6) + __builtin_shufflevector(pq, rs, 1, 3, 5, 7);
}

// The largest lane, where none is NaN.
SERIATIM_INLINE float largest(f32x16 v) {
  const Vec4 m = fold(v, [](auto a, auto b) SERIATIM_INLINE_LAMBDA { return a > b ? a : b; });
  const float a = m[0] > m[2] ? m[0] : m[2], b = m[1] > m[3] ? m[1] : m[3];
  return a > b ? a : b;
}

// ---- work
// ----------------------------------------------------------------------------------------

struct Range {
  int64_t begin, end;
};

SERIATIM_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// f32 in whole cache lines.
SERIATIM_INLINE int64_t lines(int64_t floats) { return round_up(floats, kLanes); }

// A worker's share of n things, in runs of `grain`: fixed, but no result depends on it.
SERIATIM_INLINE Range share(int64_t n, int64_t grain, Worker worker) {
  const int64_t runs = (n + grain - 1) / grain;
  const int64_t begin = runs * worker.index / worker.count * grain;
  const int64_t end = runs * (worker.index + 1) / worker.count * grain;
  return {begin < n ? begin : n, end < n ? end : n};
}

// `f(offset, how many)` over runs of sixteen.
template <class F>
SERIATIM_INLINE void sixteens(int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += kLanes) f(i, n - i < kLanes ? n - i : (int64_t)kLanes);
}

template <class W>
SERIATIM_INLINE f32x16 load_up_to(const W* p, int64_t n) {
  return n == kLanes ? load(p) : load_first(p, n);
}

template <class W>
SERIATIM_INLINE void store_up_to(W* p, f32x16 v, int64_t n) {
  n == kLanes ? store(p, v) : store_first(p, v, n);
}

}  // namespace
}  // namespace seriatim
