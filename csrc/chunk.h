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

constexpr int kTile = 4;                    // queries side by side
constexpr int64_t kLine = kBlock + kLanes;  // of scores: the last sixteen may run over

template <int N>
struct Count {};

// A chunk's slots that a position sees.
SERIATIM_INLINE Range seen(int64_t position, int64_t chunk, int64_t window) {
  const int64_t end = position + 1 - chunk * kBlock, begin = window ? end - window : 0;
  return {begin > 0 ? begin : 0, end < kBlock ? end : kBlock};
}

template <int R, class F>
SERIATIM_INLINE int64_t tile(const Range* spans, int64_t rows, int64_t r, F&& f) {
  if constexpr (R > 1)
    if (r + R > rows || spans[r + R - 1].begin >= spans[r].end)
      return tile<R - 1>(spans, rows, r, f);
  if (spans[r].begin < spans[r].end) f(Count<R>{}, r);
  return R;
}

// `f(Count, row)` over the rows that see something: side by side where they have a slot in common.
template <class F>
SERIATIM_INLINE void tiles(const Range* spans, int64_t rows, F&& f) {
  for (int64_t r = 0; r < rows;) r += tile<kTile>(spans, rows, r, f);
}

// Memory that is wanted next, so many bytes for each slot; asked for while one row is at work.
struct Ahead {
  const char* from;  // or none
  int64_t bytes;
};

SERIATIM_INLINE void ask(const Ahead& ahead, int64_t slot, int64_t slots) {
  if (!ahead.from) return;
  const char* from = ahead.from + slot * ahead.bytes;
  for (int64_t i = 0; i < slots * ahead.bytes; i += 64) __builtin_prefetch(from + i);
}

// ---- scores ------------------------------------------------------------------------------------

// R queries with K keys: [query, key]. A part of the lanes at a time: all sums stay in registers.
template <int R, int K, class KV>
SERIATIM_INLINE void dots(const float* queries, const KV* keys, int64_t width,
                          f32x16 (&sums)[R * K]) {
  SERIATIM_UNROLL for (int i = 0; i < kParts; ++i) {
    Vec part[R * K] = {};
    for (int64_t c = i * kWidth; c < width; c += kLanes) {
      Vec query[R];
      SERIATIM_UNROLL for (int r = 0; r < R; ++r) query[r] = load_part(queries + r * width + c);
      SERIATIM_UNROLL for (int k = 0; k < K; ++k) {
        const Vec key = in_register(load_part(keys + k * width + c));
        SERIATIM_UNROLL for (int r = 0; r < R; ++r) part[r * K + k] =
            fma(query[r], key, part[r * K + k]);
      }
    }
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) SERIATIM_UNROLL for (int k = 0; k < K; ++k)
        sums[r * K + k]
            .part[i] = part[r * K + k];
  }
}

template <int R, class KV>
SERIATIM_INLINE void scores(const float* queries, const KV* keys, int64_t width, Range slots,
                            const Ahead& ahead, float* out) {
  constexpr int kKeys = R == 1 ? 8 : R == 4 ? 2 : 4;  // enough chains of fma, few registers
  constexpr int kRun = kKeys < 4 ? kKeys : 4;         // of a query's keys among four sums
  int64_t j = slots.begin;
  for (; j + kKeys <= slots.end; j += kKeys) {
    ask(ahead, j, kKeys);
    f32x16 sums[R * kKeys];
    dots<R, kKeys>(queries, keys + j * width, width, sums);
    SERIATIM_UNROLL for (int i = 0; i < R * kKeys; i += 4) {
      const Vec4 four = reduce(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]);
      const float lanes[4] = {four[0], four[1], four[2], four[3]};
      SERIATIM_UNROLL for (int n = i; n < i + 4; n += kRun) __builtin_memcpy(
          out + n / kKeys * kLine + j + n % kKeys, lanes + n - i, kRun * sizeof(float));
    }
  }
  for (; j < slots.end; ++j) {
    f32x16 sums[R];
    dots<R, 1>(queries, keys + j * width, width, sums);
    SERIATIM_UNROLL for (int r = 0; r < R; ++r) out[r * kLine + j] = reduce(sums[r]);
  }
}

template <class KV>
void all_scores(const float* queries, const KV* keys, int64_t width, const Range* spans,
                int64_t rows, const Ahead& ahead, float* out) {  // [row, kLine]
  tiles(spans, rows, [&]<int R>(Count<R>, int64_t r) SERIATIM_INLINE_LAMBDA {
    const Range slots{spans[r].begin, spans[r + R - 1].end};
    scores<R>(queries + r * width, keys, width, slots, r == 0 ? ahead : Ahead{}, out + r * kLine);
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

// Scores as the softmax takes them; their largest. Lanes that run over become -inf, so weights 0.
template <bool kScaled>
SERIATIM_INLINE float scale_scores(float* scores, Range slots, const Scales& scales, float scale,
                                   float cap) {
  const f32x16 none = all(-__builtin_inff());
  f32x16 most = none;
  for (int64_t j = slots.begin; j < slots.end; j += kLanes) {
    f32x16 s = load(scores + j);
    if (kScaled) s = s * load(scales.keys + j);
    s = s * all(scale);
    if (cap > 0) s = softcap(s, cap);
    if (slots.end - j < kLanes) s = select(below(slots.end - j), s, none);
    most = select(s > most, s, most);
    store(scores + j, s);
  }
  return largest(most);
}

// Scores become weights exp(score - largest); their sum. Those of int8 then take the value's scale.
template <bool kScaled>
SERIATIM_INLINE float weigh(float* scores, Range slots, const Scales& scales, float largest) {
  f32x16 sum = zero();
  for (int64_t j = slots.begin; j < slots.end; j += kLanes) {
    const f32x16 w = exp(load(scores + j) - all(largest));
    sum = sum + w;
    store(scores + j, kScaled ? w * load(scales.values + j) : w);
  }
  return reduce(sum);
}

// Two loops, so that the rows' chains of operations overlap.
template <bool kScaled>
void all_weights(float* scores, const Scales& scales, float scale, float cap, const Range* spans,
                 int64_t rows, Part* parts) {
  for (int64_t r = 0; r < rows; ++r)
    if (spans[r].begin < spans[r].end)
      parts[r].largest = scale_scores<kScaled>(scores + r * kLine, spans[r], scales, scale, cap);
  for (int64_t r = 0; r < rows; ++r)
    if (spans[r].begin < spans[r].end)
      parts[r].sum = weigh<kScaled>(scores + r * kLine, spans[r], scales, parts[r].largest);
}

// ---- mixes -------------------------------------------------------------------------------------

// out[r][c] = sum over j ascending of weights[r][j] values[j, c], for N sixteens of channels.
template <int R, int N, class KV>
SERIATIM_INLINE void mix(const float* weights, const KV* values, int64_t width, const Range* spans,
                         const Ahead& ahead, float* out) {
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
    ask(ahead, j, 1);
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

// Up to `left` sixteens of channels: how many were mixed.
template <int R, int N, class KV>
SERIATIM_INLINE int64_t mix_some(const float* weights, const KV* values, int64_t width,
                                 const Range* spans, int64_t left, const Ahead& ahead, float* out) {
  const bool even = left > N && left < 2 * N && N > (left + 1) / 2;  // better than N, then few
  if constexpr (N > 1)
    if (left < N || even)
      return mix_some<R, N - 1>(weights, values, width, spans, left, ahead, out);
  mix<R, N>(weights, values, width, spans, ahead, out);
  return N;
}

template <class KV>
void all_mixes(const float* weights, const KV* values, int64_t width, const Range* spans,
               int64_t rows, const Ahead& ahead, float* out) {  // [row, width]
  tiles(spans, rows, [&]<int R>(Count<R>, int64_t r) SERIATIM_INLINE_LAMBDA {
    constexpr int kMost = R == 1   ? 4
                          : R == 2 ? 3
                          : R == 3 ? 2
                                   : 1;  // sums that fit the registers of AVX2
    for (int64_t c = 0; c < width;)
      c += kLanes * mix_some<R, kMost>(weights + r * kLine, values + c, width, spans + r,
                                       (width - c) / kLanes, r + c == 0 ? ahead : Ahead{},
                                       out + r * width + c);
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
