// Attention over the paged cache: store keys and values, then, after a barrier, attend.
//
// The law (contracts.md, 6 and 7): keys are read in the stored format, those of the same step too,
// in chunks of 64 aligned to position 0. A chunk's part of the softmax (largest score, sum, mix of
// values) is made from nothing and folded into the total in ascending order; chunks wholly outside
// the window are skipped. So a token's result depends on its own position and keys only. Loops end
// at the token's own position: nothing beyond it is read, not even to be multiplied by zero.
#pragma once
#include "functions.h"
#include "ops.h"
#include "pointwise.h"
#include "simd.h"

namespace seriatim {
namespace {

constexpr int kMixed = 4;  // sixteens of channels whose mix is held in registers

// The block and slot of one token's place in the cache.
struct Place {
  char* block;
  int64_t slot;
};

SERIATIM_INLINE char* block_of(const Call& call, int64_t sequence, int64_t position) {
  const int64_t at = sequence * call.batch->blocks + position / kBlock;
  return call.cache->blocks[call.batch->block_table[at]];
}

// One layer's keys in a block, and its values.
template <class KV>
struct Pages {
  KV *keys, *values;
};  // [kv head, slot, channel]

template <class KV>
SERIATIM_INLINE Pages<KV> pages(const Call& call, char* block, int64_t width) {
  const int64_t layer = call.record->ints[kAttentionLayer];
  KV* keys = reinterpret_cast<KV*>(block + call.cache->offsets[layer]);
  return {keys, keys + width * kBlock};
}

SERIATIM_INLINE void keep(float* to, f32x16 v, int64_t n) { store_up_to(to, v, n); }
SERIATIM_INLINE void keep(bf16* to, f32x16 v, int64_t n) { store_first(to, v, n); }

template <class KV>
SERIATIM_INLINE void store_keys(const Call& call, Worker worker) {
  const int64_t heads = call.record->ints[kAttentionKvHeads];
  const int64_t channels = call.record->width_in / call.record->ints[kAttentionHeads];
  const Range mine = share(call.rows * heads, 1, worker);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t token = i / heads, head = i % heads, position = call.batch->position[token];
    char* block = block_of(call, call.batch->sequence[token], position);
    const auto [keys, values] = pages<KV>(call, block, heads * channels);
    const int64_t to = (head * kBlock + position % kBlock) * channels, from = i * channels;
    sixteens(channels, [&](int64_t c, int64_t n) SERIATIM_INLINE_LAMBDA {
      keep(keys + to + c, load_up_to(call.inputs[1] + from + c, n), n);
      keep(values + to + c, load_up_to(call.inputs[2] + from + c, n), n);
    });
  }
}

// K dot products with one query at once.
template <int K, class KV>
SERIATIM_INLINE void dots(const float* query, const KV* keys, int64_t channels, f32x16 (&sums)[K]) {
  SERIATIM_UNROLL for (int j = 0; j < K; ++j) sums[j] = zero();
  sixteens(channels, [&](int64_t c, int64_t n) SERIATIM_INLINE_LAMBDA {
    const f32x16 q = load_up_to(query + c, n);
    SERIATIM_UNROLL for (int j = 0; j < K; ++j) sums[j] =
        fma(q, load_up_to(keys + j * channels + c, n), sums[j]);
  });
}

template <class KV>
SERIATIM_INLINE void scores(const float* query, const KV* keys, int64_t channels, int64_t count,
                            float* out) {
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) {
    f32x16 sums[4];
    dots(query, keys + j * channels, channels, sums);
    const Vec4 four = reduce(sums[0], sums[1], sums[2], sums[3]);
    __builtin_memcpy(out + j, &four, sizeof four);
  }
  for (; j < count; ++j) {
    f32x16 sums[1];
    dots(query, keys + j * channels, channels, sums);
    out[j] = reduce(sums[0]);
  }
}

// mix[c] = sum over j ascending of weight[j] value[j, c], for N sixteens of channels.
template <int N, class KV>
SERIATIM_INLINE void mix(const float* weights, const KV* values, int64_t channels, int64_t count,
                         float* out) {
  f32x16 sums[N];
  SERIATIM_UNROLL for (int i = 0; i < N; ++i) sums[i] = zero();
  for (int64_t j = 0; j < count; ++j) {
    const f32x16 weight = all(weights[j]);
    SERIATIM_UNROLL for (int i = 0; i < N; ++i) sums[i] =
        fma(weight, load(values + j * channels + i * kLanes), sums[i]);
  }
  SERIATIM_UNROLL for (int i = 0; i < N; ++i) store(out + i * kLanes, sums[i]);
}

template <class KV>
SERIATIM_INLINE void mix_tail(const float* weights, const KV* values, int64_t channels,
                              int64_t count, int64_t n, float* out) {
  f32x16 sum = zero();
  for (int64_t j = 0; j < count; ++j)
    sum = fma(all(weights[j]), load_first(values + j * channels, n), sum);
  store_first(out, sum, n);
}

template <class KV>
SERIATIM_INLINE void mix(const float* weights, const KV* values, int64_t channels, int64_t count,
                         float* out) {
  int64_t c = 0;
  for (; c + kMixed * kLanes <= channels; c += kMixed * kLanes)
    mix<kMixed>(weights, values + c, channels, count, out + c);
  for (; c + kLanes <= channels; c += kLanes) mix<1>(weights, values + c, channels, count, out + c);
  if (c < channels) mix_tail(weights, values + c, channels, count, channels - c, out + c);
}

// A softmax in the making, its mix of values not yet divided by the sum.
struct Part {
  float largest, sum;
};

// Scores become weights exp(score - largest), in place. Lanes beyond `count` add zeros.
SERIATIM_INLINE Part weigh(float* scores, int64_t count, float scale, float cap) {
  sixteens(count, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    const f32x16 s = load_up_to(scores + i, n) * all(scale);
    store_up_to(scores + i, cap > 0 ? softcap(s, cap) : s, n);
  });
  float largest = scores[0];
  for (int64_t i = 1; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
  f32x16 sum = zero();
  sixteens(count, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    f32x16 w = exp(load_up_to(scores + i, n) - all(largest));
    w = n == kLanes ? w : keep_first(w, n);
    store_up_to(scores + i, w, n);
    sum = sum + w;
  });
  return {largest, reduce(sum)};
}

SERIATIM_INLINE float exp(float x) { return exp(all(x)).part[0][0]; }

SERIATIM_INLINE Part fold_part(Part total, float* total_mix, Part part, const float* part_mix,
                               int64_t channels) {
  const float largest = part.largest > total.largest ? part.largest : total.largest;
  const float a = exp(total.largest - largest), b = exp(part.largest - largest);
  sixteens(channels, [&](int64_t c, int64_t n) SERIATIM_INLINE_LAMBDA {
    const f32x16 old = load_up_to(total_mix + c, n) * all(a);
    store_up_to(total_mix + c, fma(load_up_to(part_mix + c, n), all(b), old), n);
  });
  return {largest, total.sum * a + part.sum * b};
}

// One token and one kv head: all the query heads that share it.
template <class KV>
SERIATIM_INLINE void attend(const Call& call, int64_t token, int64_t head, float* scratch) {
  const Record& record = *call.record;
  const int64_t heads = record.ints[kAttentionHeads], kv_heads = record.ints[kAttentionKvHeads];
  const int64_t group = heads / kv_heads, channels = record.width_in / heads;
  const int64_t window = record.ints[kAttentionWindow];
  const float scale = static_cast<float>(record.floats[kAttentionScale]);
  const float cap = static_cast<float>(record.floats[kAttentionSoftcap]);
  const int64_t sequence = call.batch->sequence[token], last = call.batch->position[token];
  const int64_t first = window && last >= window ? last - window + 1 : 0;
  const float* query = call.inputs[0] + (token * heads + head * group) * channels;
  float* output = call.output + (token * heads + head * group) * channels;  // [group, channel]
  float* weights = scratch;                                                 // [64]
  float* part_mix = scratch + kBlock;                                       // [channel]
  Part* total = reinterpret_cast<Part*>(part_mix + channels);               // [group]
  for (int64_t chunk = first / kBlock; chunk <= last / kBlock; ++chunk) {
    const int64_t start = chunk * kBlock;
    const int64_t begin = start < first ? first - start : 0;
    const int64_t end = last - start < kBlock ? last - start + 1 : kBlock;
    const auto [keys, values] =
        pages<KV>(call, block_of(call, sequence, start), kv_heads * channels);
    const int64_t at = (head * kBlock + begin) * channels;
    const bool fresh = chunk == first / kBlock;
    for (int64_t g = 0; g < group; ++g) {
      float* mixed = fresh ? output + g * channels : part_mix;
      scores(query + g * channels, keys + at, channels, end - begin, weights);
      const Part part = weigh(weights, end - begin, scale, cap);
      mix(weights, values + at, channels, end - begin, mixed);
      total[g] = fresh ? part : fold_part(total[g], output + g * channels, part, mixed, channels);
    }
  }
  for (int64_t g = 0; g < group; ++g)
    sixteens(channels, [&](int64_t c, int64_t n) SERIATIM_INLINE_LAMBDA {
      float* y = output + g * channels + c;
      store_up_to(y, load_up_to(y, n) / all(total[g].sum), n);
    });
}

// Items in turn, not in runs: later tokens have more keys.
template <class KV>
SERIATIM_INLINE void attention(const Call& call, Worker worker) {
  const int64_t kv_heads = call.record->ints[kAttentionKvHeads];
  for (int64_t i = worker.index; i < call.rows * kv_heads; i += worker.count)
    attend<KV>(call, i / kv_heads, i % kv_heads, worker.scratch);
}

template <class KV>
SERIATIM_INLINE void store_and_attend(const Call& call, Worker worker) {
  store_keys<KV>(call, worker);
  worker.barrier();
  attention<KV>(call, worker);
}

void attention(const Call& call, Worker worker) {
  call.cache->type == Type::kF32 ? store_and_attend<float>(call, worker)
                                 : store_and_attend<bf16>(call, worker);
}

Memory attention_memory(const Record& record) {
  const int64_t heads = record.ints[kAttentionHeads];
  return {kBlock + record.width_in / heads + 2 * heads / record.ints[kAttentionKvHeads], 0};
}

}  // namespace
}  // namespace seriatim
