// One chunk of keys and values against some queries: scores, weights, mixes, and their folding.
//
// Queries, keys in scratch and mixes are rows of `width` floats, whole sixteens. Each (query, key)
// has sixteen lanes, lane = channel mod 16, ascending, then the tree; each (query, channel) one
// chain of fused multiply-adds, keys ascending. Tiles only choose which of them are made side by
// side.
#pragma once
#include "functions.h"
#include "pages.h"
#include "simd.h"

namespace seriatim {
namespace {

constexpr int kTile = kWidth == 16 ? 4 : 2;  // queries side by side
constexpr int64_t kLine = kBlock + kLanes;   // of scores: the last sixteen may run over

template <int N>
struct Count {};

// A chunk's slots that a position sees.
SERIATIM_INLINE Range seen(int64_t position, int64_t chunk, int64_t window) {
  const int64_t end = position + 1 - chunk * kBlock, begin = window ? end - window : 0;
  return {begin > 0 ? begin : 0, end < kBlock ? end : kBlock};
}

// `f(Count, row)` over the rows that see something: side by side where they have a slot in common.
template <class F>
SERIATIM_INLINE void tiles(const Range* spans, int64_t rows, F&& f) {
  for (int64_t r = 0; r < rows;) {
    if (r + kTile <= rows && spans[r + kTile - 1].begin < spans[r].end) {
      f(Count<kTile>{}, r);
      r += kTile;
    } else {
      if (spans[r].begin < spans[r].end) f(Count<1>{}, r);
      ++r;
    }
  }
}

// ---- scores ------------------------------------------------------------------------------------

// R queries with K keys. A part of the lanes at a time: all the sums stay in registers.
template <int R, int K, class KV>
SERIATIM_INLINE void dots(const float* queries, const KV* keys, int64_t width,
                          f32x16 (&sums)[R][K]) {
  SERIATIM_UNROLL for (int i = 0; i < kParts; ++i) {
    Vec part[R][K] = {};
    for (int64_t c = i * kWidth; c < width; c += kLanes) {
      Vec query[R];
      SERIATIM_UNROLL for (int r = 0; r < R; ++r) query[r] = load_part(queries + r * width + c);
      SERIATIM_UNROLL for (int k = 0; k < K; ++k) {
        const Vec key = in_register(load_part(keys + k * width + c));
        SERIATIM_UNROLL for (int r = 0; r < R; ++r) part[r][k] = fma(query[r], key, part[r][k]);
      }
    }
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) SERIATIM_UNROLL for (int k = 0; k < K; ++k)
        sums[r][k]
            .part[i] = part[r][k];
  }
}

template <int R, class KV>
SERIATIM_INLINE void scores(const float* queries, const KV* keys, int64_t width, Range slots,
                            float* out) {
  int64_t j = slots.begin;
  for (; j + 4 <= slots.end; j += 4) {
    f32x16 sums[R][4];
    dots(queries, keys + j * width, width, sums);
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) {
      const Vec4 four = reduce(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
      __builtin_memcpy(out + r * kLine + j, &four, sizeof four);
    }
  }
  for (; j < slots.end; ++j) {
    f32x16 sums[R][1];
    dots(queries, keys + j * width, width, sums);
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) out[r * kLine + j] = reduce(sums[r][0]);
  }
}

template <class KV>
void all_scores(const float* queries, const KV* keys, int64_t width, const Range* spans,
                int64_t rows, float* out) {  // [row, kLine]
  tiles(spans, rows, [&]<int R>(Count<R>, int64_t r) SERIATIM_INLINE_LAMBDA {
    const Range slots{spans[r].begin, spans[r + R - 1].end};
    scores<R>(queries + r * width, keys, width, slots, out + r * kLine);
  });
}

// ---- weights -----------------------------------------------------------------------------------

// A softmax in the making, its mix of values not yet divided by the sum.
struct Part {
  float largest, sum;
};

// Scales of a chunk's keys and values, [kLine].
struct Scales {
  float keys[kLine], values[kLine];
};

SERIATIM_INLINE Mask below(int64_t n) {  // lanes
  constexpr float kIndex[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(kIndex) < all(static_cast<float>(n));
}

// Scores become weights exp(score - largest), in place; those of int8 first take the key's scale,
// and the weights, once summed, the value's.
template <bool kScaled>
SERIATIM_INLINE Part weigh(float* scores, Range slots, const Scales& scales, float scale,
                           float cap) {
  const float none = -__builtin_inff();
  f32x16 most = all(none);
  for (int64_t j = slots.begin; j < slots.end; j += kLanes) {
    f32x16 s = load(scores + j);
    if (kScaled) s = s * load(scales.keys + j);
    s = s * all(scale);
    if (cap > 0) s = softcap(s, cap);
    if (slots.end - j < kLanes) s = select(below(slots.end - j), s, all(none));
    most = select(s > most, s, most);
    store(scores + j, s);
  }
  const float top = largest(most);
  f32x16 sum = zero();
  for (int64_t j = slots.begin; j < slots.end; j += kLanes) {
    const f32x16 w = exp(load(scores + j) - all(top));
    sum = sum + w;
    store(scores + j, kScaled ? w * load(scales.values + j) : w);
  }
  return {top, reduce(sum)};
}

// ---- mixes -------------------------------------------------------------------------------------

// out[r][c] = sum over j ascending of weights[r][j] values[j, c], for N sixteens of channels.
template <int R, int N, class KV>
SERIATIM_INLINE void mix(const float* weights, const KV* values, int64_t width, const Range* spans,
                         float* out) {
  f32x16 sums[R][N];
  SERIATIM_UNROLL for (int r = 0; r < R; ++r) SERIATIM_UNROLL for (int i = 0; i < N; ++i)
      sums[r][i] = zero();
  const Range common{spans[R - 1].begin, spans[0].end};
  const auto alone = [&](int64_t begin, int64_t end, int r) SERIATIM_INLINE_LAMBDA {
    for (int64_t j = begin; j < end; ++j)
      SERIATIM_UNROLL for (int i = 0; i < N; ++i) sums[r][i] =
          fma(all(weights[r * kLine + j]), load(values + j * width + i * kLanes), sums[r][i]);
  };
  SERIATIM_UNROLL for (int r = 0; r < R; ++r) alone(spans[r].begin, common.begin, r);
  for (int64_t j = common.begin; j < common.end; ++j) {
    Vec weight[R];
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) weight[r] = splat(weights[r * kLine + j]);
    SERIATIM_UNROLL for (int i = 0; i < N * kParts; ++i) {
      const Vec value = in_register(load_part(values + j * width + i * kWidth));
      SERIATIM_UNROLL for (int r = 0; r < R; ++r) {
        Vec& sum = sums[r][i / kParts].part[i % kParts];
        sum = fma(weight[r], value, sum);
      }
    }
  }
  SERIATIM_UNROLL for (int r = 0; r < R; ++r) {
    alone(common.end, spans[r].end, r);
    SERIATIM_UNROLL for (int i = 0; i < N; ++i) store(out + r * width + i * kLanes, sums[r][i]);
  }
}

template <class KV>
void all_mixes(const float* weights, const KV* values, int64_t width, const Range* spans,
               int64_t rows, float* out) {  // [row, width]
  tiles(spans, rows, [&]<int R>(Count<R>, int64_t r) SERIATIM_INLINE_LAMBDA {
    constexpr int kMost = R == 1 ? 4 : 2;  // sums that fit the registers of AVX2
    const float* w = weights + r * kLine;
    float* to = out + r * width;
    int64_t c = 0;
    for (; c + kMost * kLanes <= width; c += kMost * kLanes)
      mix<R, kMost>(w, values + c, width, spans + r, to + c);
    for (; c < width; c += kLanes) mix<R, 1>(w, values + c, width, spans + r, to + c);
  });
}

// ---- folding -----------------------------------------------------------------------------------

SERIATIM_INLINE float exp(float x) { return exp(all(x)).part[0][0]; }

SERIATIM_INLINE Part fold_part(Part total, float* total_mix, Part part, const float* part_mix,
                               int64_t width) {
  const float largest = part.largest > total.largest ? part.largest : total.largest;
  const float a = exp(total.largest - largest), b = exp(part.largest - largest);
  for (int64_t c = 0; c < width; c += kLanes)
    store(total_mix + c, fma(load(part_mix + c), all(b), load(total_mix + c) * all(a)));
  return {largest, total.sum * a + part.sum * b};
}

}  // namespace
}  // namespace seriatim
