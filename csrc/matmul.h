// The matrix product with weights row by row, f32, f16 or bf16: sums[token, row] of weight[row, k]
// x[token, k] over all k.
//
// The law (contracts.md, 1): each (row, token) has sixteen f32 lanes, lane = k mod 16, filled in
// ascending k by fused multiply-adds from zero, then one tree. Tiles, blocks, passes and workers
// only choose which sums are made side by side and where they wait meanwhile, so every shape gives
// the same bits. Weights are read where they lie; for many tokens a few rows at a time are
// expanded.
#pragma once
#include "ops.h"
#include "pointwise.h"
#include "simd.h"

namespace seriatim {
namespace {

// Sums held in registers. AVX2, 3 x 2: 12 registers of sums, 2 of x, 1 of weights, of 16.
constexpr int kTileRows = SERIATIM_WIDTH == 16 ? 4 : SERIATIM_WIDTH == 8 ? 3 : 2;
constexpr int kTileTokens = SERIATIM_WIDTH == 16 ? 4 : SERIATIM_WIDTH == 8 ? 2 : 1;
// For one token: four streams of memory, and enough chains of fma.
constexpr int kSingleRows = SERIATIM_WIDTH > 4 ? 4 : 2;

constexpr int64_t kFewTokens = 8;  // up to these, weights go straight from memory to the sums
// For more, blocks: x of one pass (128 KB) and its sums (96 KB) stay in L2, a tile's rows in L1.
constexpr int64_t kBlockTokens = 32, kBlockRows = 48, kDepth = 1024;

// Rows shorter than the processor's own prefetcher takes to start are asked for one tile ahead.
constexpr int64_t kFetch = 32768;  // bytes of a tile's rows

SERIATIM_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Where the sums of some rows go, the first of them in column 0.
struct Sums {
  float* at;  // [token, stride]
  int64_t stride;
};

// Inputs of many tokens lie in blocks: [block, pass, token, kDepth].
SERIATIM_INLINE int64_t padded_depth(int64_t depth) { return round_up(depth, kDepth); }

// What a worker needs for many tokens, in f32.
constexpr int64_t kExpandedFloats = 4 * kDepth;                      // [row of a tile, kDepth]
constexpr int64_t kKeptFloats = kBlockRows * kBlockTokens * kLanes;  // [row, token, lane]
constexpr int64_t kRowScratch = kExpandedFloats + kKeptFloats;

// Some rows of weights against some tokens, over n of k.
template <class W>
struct Slab {
  const W* weights;  // [row, weight_stride]
  const float* x;    // [token, x_stride]
  int64_t weight_stride, x_stride, n;
  float* sums;       // [row, kBlockTokens, lane], where they wait between passes
  bool first, last;  // pass
  const W* next;     // rows to ask memory for meanwhile, or none
};

// sums[r][t] += weights[r] x[t]. A register's worth of k at a time: `weight` is loaded once and
// used T times, which the compiler must be told (it would rather load it T times).
template <int R, int T, class W>
SERIATIM_INLINE void accumulate(const Slab<W>& slab, f32x16 (&sums)[R][T]) {
  const W* w = slab.weights;
  const float* x = slab.x;
  int64_t k = 0;
  for (; k + kLanes <= slab.n; k += kLanes) {
    if (slab.next) fetch(slab.next + k * R, kLanes * R * sizeof(W));
    SERIATIM_UNROLL for (int i = 0; i < kParts; ++i) {
      const int64_t at = k + i * kWidth;
      Vec xs[T];
      SERIATIM_UNROLL for (int t = 0; t < T; ++t) xs[t] = load_part(x + t * slab.x_stride + at);
      SERIATIM_UNROLL for (int r = 0; r < R; ++r) {
        const Vec weight = in_register(load_part(w + r * slab.weight_stride + at));
        SERIATIM_UNROLL for (int t = 0; t < T; ++t) sums[r][t].part[i] =
            fma(weight, xs[t], sums[r][t].part[i]);
      }
    }
  }
  if (k == slab.n) return;
  for (int r = 0; r < R; ++r) {
    const f32x16 weight = load_first(w + r * slab.weight_stride + k, slab.n - k);
    for (int t = 0; t < T; ++t)
      sums[r][t] = fma(weight, load_first(x + t * slab.x_stride + k, slab.n - k), sums[r][t]);
  }
}

// R rows and T tokens: sums begun or taken up, added to, and put by or finished.
template <int R, int T, class W>
SERIATIM_INLINE void tile(const Slab<W>& slab, Sums out, int64_t row, int64_t token) {
  f32x16 sums[R][T];
  const auto kept = [&](int r, int t) { return slab.sums + (r * kBlockTokens + t) * kLanes; };
  SERIATIM_UNROLL for (int r = 0; r < R; ++r) SERIATIM_UNROLL for (int t = 0; t < T; ++t)
      sums[r][t] = slab.first ? zero() : load(kept(r, t));
  accumulate(slab, sums);
  SERIATIM_UNROLL for (int t = 0; t < T; ++t) SERIATIM_UNROLL for (int r = 0; r < R; ++r) {
    if (!slab.last) {
      store(kept(r, t), sums[r][t]);
      continue;
    }
    out.at[(token + t) * out.stride + row + r] = reduce(sums[r][t]);
  }
}

template <int R, int T, class W>
SERIATIM_INLINE void all_tokens(Slab<W> slab, Sums out, int64_t row, int64_t tokens) {
  const auto next = [&](int n) {
    slab.x += n * slab.x_stride;
    slab.sums += n * kLanes;
  };
  int64_t t = 0;
  for (; t + T <= tokens; t += T, next(T)) tile<R, T>(slab, out, row, t);
  for (; t < tokens; ++t, next(1)) tile<R, 1>(slab, out, row, t);
}

// ---- few tokens: one pass, weights read once from memory
// -----------------------------------------

template <int R, int T, class W>
void few_tokens(const W* weights, const float* x, int64_t depth, Sums out, int64_t rows,
                int64_t tokens) {
  const auto slab = [&](int64_t row) {
    const W* next = R * depth * sizeof(W) <= kFetch ? weights + (row + R) * depth : nullptr;
    return Slab<W>{weights + row * depth, x, depth, depth, depth, nullptr, true, true, next};
  };
  int64_t row = 0;
  for (; row + R <= rows; row += R) all_tokens<R, T>(slab(row), out, row, tokens);
  for (; row < rows; ++row) all_tokens<1, T>(slab(row), out, row, tokens);
}

// ---- many tokens: blocks of tokens and rows, passes over k
// ----------------------------------------

// R rows in one pass, all tokens of the block; f32 weights in place, others expanded once for all.
template <int R, class W>
void some_rows(const W* weights, int64_t depth, Slab<float> slab, float* expanded, Sums out,
               int64_t row, int64_t tokens) {
  if constexpr (sizeof(W) == sizeof(float)) {
    slab.weights = weights;
    slab.weight_stride = depth;
  } else {
    for (int r = 0; r < R; ++r) expand(weights + r * depth, expanded + r * kDepth, slab.n);
    slab.weights = expanded;
    slab.weight_stride = kDepth;
  }
  all_tokens<R, kTileTokens>(slab, out, row, tokens);
}

template <class W>
void many_tokens(const W* weights, const float* inputs, int64_t depth, float* scratch, Sums out,
                 int64_t rows, int64_t tokens) {
  for (int64_t k = 0; k < depth; k += kDepth) {
    const auto slab = [&](int64_t row) {
      float* sums = scratch + kExpandedFloats + row * kBlockTokens * kLanes;
      return Slab<float>{nullptr, inputs + k * kBlockTokens, 0,
                         kDepth,  least(depth - k, kDepth),  sums,
                         k == 0,  k + kDepth >= depth,       nullptr};
    };
    const W* at = weights + k;
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows)
      some_rows<kTileRows>(at + row * depth, depth, slab(row), scratch, out, row, tokens);
    for (; row < rows; ++row)
      some_rows<1>(at + row * depth, depth, slab(row), scratch, out, row, tokens);
  }
}

// ---- inputs, and the product -------------------------------------------------------------------

// x as the product takes it: rounded for bf16 weights.
SERIATIM_INLINE void prepare(const float* from, float* to, int64_t n, bool rounded) {
  sixteens(n, [&](int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA {
    const f32x16 x = load_up_to(from + i, m);
    store_up_to(to + i, rounded ? round_bf16(x) : x, m);
  });
}

// One token's inputs into its place among `tokens`.
SERIATIM_INLINE void place_inputs(const float* x, int64_t depth, bool rounded, int64_t token,
                                  int64_t tokens, float* to) {
  if (tokens <= kFewTokens) return prepare(x, to + token * depth, depth, rounded);
  to += token / kBlockTokens * kBlockTokens * padded_depth(depth) + token % kBlockTokens * kDepth;
  for (int64_t k = 0; k < depth; k += kDepth)
    prepare(x + k, to + k * kBlockTokens, least(depth - k, kDepth), rounded);
}

// Sums of at most kBlockRows rows; `few`: inputs lie [token, depth], else in blocks, from the first
// of at most kBlockTokens tokens on.
template <class W>
void multiply_rows(const Tensor& weight, Range rows, const float* inputs, int64_t tokens, bool few,
                   float* scratch, Sums out) {
  const int64_t depth = weight.columns, n = rows.end - rows.begin;
  const W* weights = static_cast<const W*>(weight.data) + rows.begin * depth;
  if (!few) return many_tokens(weights, inputs, depth, scratch, out, n, tokens);
  tokens == 1 ? few_tokens<kSingleRows, 1>(weights, inputs, depth, out, n, 1)
              : few_tokens<kTileRows, kTileTokens>(weights, inputs, depth, out, n, tokens);
}

}  // namespace
}  // namespace seriatim
