// The matrix product with weights in blocks (kernels/formats.py) and inputs rounded to int8.
//
// The law (contracts.md, 1): inputs are rounded in groups of 32, each to whole multiples of its
// largest size / 127; a group's dot product is an exact integer d; and each (row, token) has one
// f32 accumulator, filled in ascending groups by one fused multiply-add:
//
//   sum = fma(float(d), weight scale * input scale, sum)
//
// Lanes are rows, so nothing is added across them. How many rows and tokens go side by side, and
// where sums wait meanwhile, changes no bit.
#pragma once
#include "dots.h"
#include "dots6.h"
#include "ops.h"
#include "simd.h"

namespace seriatim {
namespace {

// Tokens side by side, and the registers that their dots may take: with the weights' and the
// inputs', all there are.
constexpr int kTokens = SERIATIM_WIDTH == 16 ? 6 : SERIATIM_WIDTH == 8 ? 4 : 2;
constexpr int kDotRegisters = SERIATIM_WIDTH == 16 ? 12 : 8;

// With more tokens, a panel's weights of so many groups (int4: 14 KB, int8: 26 KB) stay in L1 until
// all its rows and all tokens have met them; as many are asked for ahead.
constexpr int64_t kGroupsAtOnce = 24, kVeryFewTokens = 2;

// Inputs lie in runs of kTokens tokens (the last may have fewer, n): for each group the n times 32
// integers, the n scales, and the n offsets: the sum of integers times the weights' zero point, for
// int6 of each half.
SERIATIM_INLINE constexpr int64_t input_bytes(Type type) {
  return kGroup + sizeof(float) + (type == Type::kInt6 ? 2 : 1) * sizeof(int32_t);
}

// ---- inputs ------------------------------------------------------------------------------------

struct Rounded {
  float scale;
  uint32_t sums[2];  // of either half
};

// Registers of one group.
constexpr int kGroupParts = 2 * kParts;

// The eight, four, two and one left when halves are put together by `f`.
template <class V, class F>
SERIATIM_INLINE auto folded(V v, F&& f) {
#if SERIATIM_WIDTH == 16
  const auto half = f(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7),
                      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
  const auto four = f(__builtin_shufflevector(half, half, 0, 1, 2, 3),
                      __builtin_shufflevector(half, half, 4, 5, 6, 7));
#elif SERIATIM_WIDTH == 8
  const auto four =
      f(__builtin_shufflevector(v, v, 0, 1, 2, 3), __builtin_shufflevector(v, v, 4, 5, 6, 7));
#else
  const auto four = v;
#endif
  const auto two = f(four, __builtin_shufflevector(four, four, 2, 3, 0, 1));
  return f(two, __builtin_shufflevector(two, two, 1, 0, 3, 2))[0];
}

// The low bytes of a group's integers, in order.
SERIATIM_INLINE void store_bytes(int8_t* to, const Ints (&q)[kGroupParts]) {
#if SERIATIM_WIDTH == 16
  for (int i = 0; i < kGroupParts; ++i)
    _mm_storeu_si128((__m128i*)(to + i * kWidth), _mm512_cvtepi32_epi8((__m512i)q[i]));
#elif SERIATIM_WIDTH == 8
  const __m256i words = _mm256_packs_epi32((__m256i)q[0], (__m256i)q[1]);
  const __m256i more = _mm256_packs_epi32((__m256i)q[2], (__m256i)q[3]);
  const __m256i bytes = _mm256_packs_epi16(words, more);  // fours of both halves in turn
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256((__m256i*)to, _mm256_permutevar8x32_epi32(bytes, order));
#else
  for (int i = 0; i < kGroup; ++i) to[i] = static_cast<int8_t>(q[i / kWidth][i % kWidth]);
#endif
}

// To the nearest integers, ties to even, by adding 1.5 * 2^23. What is not finite makes the scale
// so too: compared as integers, such values are the largest.
SERIATIM_INLINE Rounded round_group(f32x16 a, f32x16 b, int8_t* to) {
  Vec x[kGroupParts];
  Ints most = {}, q[kGroupParts];
  Bits sums[2] = {};  // what is not finite gives any integers, whose sums wrap
  SERIATIM_EACH x[i] = a.part[i];
  SERIATIM_EACH x[kParts + i] = b.part[i];
  for (int i = 0; i < kGroupParts; ++i) {
    const Ints size = (Ints)x[i] & 0x7fffffff;
    most = size > most ? size : most;
  }
  const int32_t bits =
      folded(most, [](auto m, auto n) SERIATIM_INLINE_LAMBDA { return m > n ? m : n; });
  float size;
  __builtin_memcpy(&size, &bits, sizeof size);
  float factor = 127.0f / size;
  factor = factor < __builtin_inff() ? factor : 0.0f;  // 0 or next to it: all become 0
  const Vec by = splat(factor), magic = splat(0x1.8p23f);
  for (int i = 0; i < kGroupParts; ++i) {
    q[i] = (Ints)(x[i] * by + magic) - (Ints)magic;
    sums[i / kParts] += (Bits)q[i];
  }
  store_bytes(to, q);
  const auto plus = [](auto m, auto n) SERIATIM_INLINE_LAMBDA { return m + n; };
  return {size / 127.0f, {folded(sums[0], plus), folded(sums[1], plus)}};
}

SERIATIM_INLINE void put(uint8_t* to, auto value) { __builtin_memcpy(to, &value, sizeof value); }

// One token's inputs into its place among `tokens`, for weights of a type.
SERIATIM_INLINE void round_inputs(const float* x, int64_t columns, Type type, int64_t token,
                                  int64_t tokens, uint8_t* to) {
  const int64_t groups = groups_of(columns), first = token / kTokens * kTokens, at = token - first;
  const int64_t n = tokens - first < kTokens ? tokens - first : (int64_t)kTokens;
  const int32_t zero_is = zero_point(type);
  to += first * groups * input_bytes(type);
  for (int64_t g = 0; g < groups; ++g, to += n * input_bytes(type)) {
    const int64_t left = columns - g * kGroup;
    const float* from = x + g * kGroup;
    f32x16 a, b;
    if (left >= kGroup) {
      a = load(from);
      b = load(from + kLanes);
    } else {
      a = load_up_to(from, left < kLanes ? left : (int64_t)kLanes);
      b = left > kLanes ? load_first(from + kLanes, left - kLanes) : zero();
    }
    const Rounded rounded = round_group(a, b, reinterpret_cast<int8_t*>(to) + at * kGroup);
    put(to + n * kGroup + at * 4, rounded.scale);
    const uint32_t low = rounded.sums[0] * zero_is, high = rounded.sums[1] * zero_is;
    put(to + n * (kGroup + 4) + at * 4, type == Type::kInt6 ? low : low + high);
    if (type == Type::kInt6) put(to + n * (kGroup + 8) + at * 4, high);
  }
}

// ---- the product -------------------------------------------------------------------------------

// Some groups of a panel against some tokens.
struct Strip {
  const uint8_t *weights, *inputs;  // of the first group
  int64_t groups;
  float* sums;  // [token, stride], of the panel's first register of rows
  int64_t stride;
  bool fresh;     // sums begin at zero
  int64_t ahead;  // bytes to the weights that memory is asked for meanwhile; 0: none
};

// R registers of rows from `first` on, and T tokens.
template <Type kType, int R, int T>
SERIATIM_INLINE void some_rows_and_tokens(const Strip& strip, int first) {
  constexpr int64_t kTile = tile_bytes(kType), kFactors = factor_bytes(kType);
  constexpr int kVectors = kType == Type::kInt8 ? 8 : 4, kColumns = kGroup / kVectors;
  constexpr int64_t kShare = panel_bytes(kType) / (2 * kParts);  // of a register of rows
  const auto rows = [&](int r) SERIATIM_INLINE_LAMBDA {
    return (first + r) / kParts * kTile + (first + r) % kParts * kWidth * 4;
  };
  const uint8_t *w = strip.weights, *x = strip.inputs;
  Vec sums[R][T];
  SERIATIM_UNROLL for (int r = 0; r < R; ++r) SERIATIM_UNROLL for (int t = 0; t < T; ++t)
      sums[r][t] = strip.fresh ? Vec{} : load_part(strip.sums + t * strip.stride + r * kWidth);
  for (int64_t g = 0; g < strip.groups; ++g) {
    if (strip.ahead) fetch(w + strip.ahead + first * kShare, R * kShare);
    Dot<kType> dots[R][T];
    SERIATIM_UNROLL for (int v = 0; v < kVectors; ++v) {
      typename Dot<kType>::Weights weights[R];
      SERIATIM_UNROLL for (int r = 0; r < R; ++r) weights[r] = Dot<kType>::unpack(w + rows(r), v);
      SERIATIM_UNROLL for (int t = 0; t < T; ++t) SERIATIM_UNROLL for (int r = 0; r < R; ++r)
          dots[r][t]
              .add(weights[r], reinterpret_cast<const int8_t*>(x) + t * kGroup + v * kColumns, v);
    }
    const uint8_t* scales = x + T * kGroup;
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) {
      const int row = (first + r) * kWidth;
      const uint8_t* factors = w + 2 * kTile + row;
      const Vec scale = load_part(reinterpret_cast<const f16*>(w + 2 * kTile + kFactors) + row);
      SERIATIM_UNROLL for (int t = 0; t < T; ++t) {
        const float by = unaligned<float>(scales + t * 4);
        const int32_t offset[2] = {unaligned<int32_t>(scales + (T + t) * 4),
                                   kFactors ? unaligned<int32_t>(scales + (2 * T + t) * 4) : 0};
        sums[r][t] = fma(dots[r][t].value(offset, factors), scale * splat(by), sums[r][t]);
      }
    }
    w += panel_bytes(kType);
    x += T * input_bytes(kType);
  }
  SERIATIM_UNROLL for (int r = 0; r < R; ++r) SERIATIM_UNROLL for (int t = 0; t < T; ++t)
      __builtin_memcpy(strip.sums + t * strip.stride + r * kWidth, &sums[r][t], sizeof(Vec));
}

constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Registers of rows side by side for T tokens: a power of two.
template <Type kType, int T>
constexpr int rows_at_once() {
  int rows = 1;
  while (2 * rows * T * Dot<kType>::kRegisters <= kDotRegisters && rows < 2 * kParts) rows *= 2;
  return rows;
}

// `tiles` tiles of a panel from tile `tile` on; T tokens.
template <Type kType, int T>
void strip_rows(Strip strip, int64_t tile, int64_t tiles) {
  constexpr int kRows = rows_at_once<kType, T>(), kHalf = smaller(kRows, kParts);
  const int first = static_cast<int>(tile) * kParts, count = static_cast<int>(tiles) * kParts;
  for (int r = 0; r < count;) {
    if (count - r >= kRows) {
      some_rows_and_tokens<kType, kRows, T>(strip, first + r);
      strip.sums += kRows * kWidth;
      r += kRows;
    } else {
      some_rows_and_tokens<kType, kHalf, T>(strip, first + r);
      strip.sums += kHalf * kWidth;
      r += kHalf;
    }
  }
}

template <Type kType, int T = kTokens>
SERIATIM_INLINE void strip_tokens(const Strip& strip, int64_t tile, int64_t tiles, int64_t tokens) {
  if (tokens == T) return strip_rows<kType, T>(strip, tile, tiles);
  if constexpr (T > 1) strip_tokens<kType, T - 1>(strip, tile, tiles, tokens);
}

// sums[token, row - rows.begin] of rows that begin and end at whole tiles (those beyond the matrix
// give zeros), for tokens whose inputs begin a run.
template <Type kType>
void multiply_blocks(const Tensor& weight, Range rows, const uint8_t* inputs, int64_t tokens,
                     float* sums, int64_t stride) {
  const int64_t groups = groups_of(weight.columns);
  const bool very_few = tokens <= kVeryFewTokens;
  const int64_t at_once = very_few ? groups : kGroupsAtOnce;
  // Bytes of very few tokens wait for nothing but memory, whose own order is then the best: at 1B a
  // step of two took 81 ms, and 120 ms when asked for ahead.
  const int64_t ahead = very_few && kType == Type::kInt8 ? 0 : kGroupsAtOnce * panel_bytes(kType);
  const uint8_t* data = static_cast<const uint8_t*>(weight.data);
  for (int64_t row = rows.begin; row < rows.end;) {
    const int64_t tile = row % kPanel / kTileLanes;
    const int64_t left = (rows.end - row) / kTileLanes, tiles = left < 2 - tile ? left : 2 - tile;
    for (int64_t g = 0; g < groups; g += at_once) {
      const uint8_t* panel = data + (row / kPanel * groups + g) * panel_bytes(kType);
      const int64_t count = groups - g < at_once ? groups - g : at_once;
      for (int64_t t = 0; t < tokens; t += kTokens) {
        const int64_t n = tokens - t < kTokens ? tokens - t : (int64_t)kTokens;
        const uint8_t* x = inputs + (t * groups + g * n) * input_bytes(kType);
        float* to = sums + t * stride + (row - rows.begin);
        strip_tokens<kType>({panel, x, count, to, stride, g == 0, t == 0 ? ahead : 0}, tile, tiles,
                            n);
      }
    }
    row += tiles * kTileLanes;
  }
}

}  // namespace
}  // namespace seriatim
