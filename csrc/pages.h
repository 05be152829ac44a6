// Keys and values in the paged cache: where they lie, how one head's are written and read back.
//
// A layer of a block: keys [kv head][slot][channel], values likewise, and at int8 the scales of the
// keys f32 [kv head][slot], then those of the values. bf16 rounds to nearest even. int8 keeps one
// scale for each head of a token, most / 127 of the largest size in it: x is stored as x times
// 127 / most, rounded half to even, which lies in -127 .. 127. What is not finite makes the scale
// NaN, so that no result hides it.
#pragma once
#include "ops.h"
#include "pointwise.h"
#include "simd.h"

namespace seriatim {
namespace {

// What a record of attention says, `attention` or `attend`.
struct Shape {
  int64_t heads, kv_heads, channels;
  int64_t group;  // query heads that share a kv head
  int64_t width;  // channels, filled up to whole sixteens
  int64_t layer, window;
  float scale, cap;
};

SERIATIM_INLINE Shape shape_of(const Record& record) {
  const auto& ints = record.ints;
  const int64_t heads = ints[kAttentionHeads], kv_heads = ints[kAttentionKvHeads];
  const int64_t channels = record.width_out / heads;
  return {heads,
          kv_heads,
          channels,
          heads / kv_heads,
          round_up(channels, kLanes),
          ints[kAttentionLayer],
          ints[kAttentionWindow],
          static_cast<float>(record.floats[kAttentionScale]),
          static_cast<float>(record.floats[kAttentionSoftcap])};
}

// One kv head's share of a block.
template <class KV>
struct Pages {
  KV *keys, *values;                 // [slot, channel]
  float *key_scales, *value_scales;  // [slot], of int8
};

template <class KV>
SERIATIM_INLINE Pages<KV> pages(const Call& call, const Shape& shape, int64_t sequence,
                                int64_t chunk, int64_t head) {
  const int32_t block = call.batch->block_table[sequence * call.batch->blocks + chunk];
  char* layer = call.cache->blocks[block] + call.cache->offsets[shape.layer];
  const int64_t one = kBlock * shape.channels, all = shape.kv_heads * one;
  KV* keys = reinterpret_cast<KV*>(layer);
  float* scales = reinterpret_cast<float*>(keys + 2 * all);  // 64 slots keep it aligned
  return {keys + head * one, keys + all + head * one, scales + head * kBlock,
          scales + (shape.kv_heads + head) * kBlock};
}

// ---- writing -----------------------------------------------------------------------------------

SERIATIM_INLINE void keep(const float* x, float* to, float*, int64_t n) { expand(x, to, n); }

SERIATIM_INLINE void keep(const float* x, bf16* to, float*, int64_t n) {
  sixteens(n, [&](int64_t i, int64_t m)
                  SERIATIM_INLINE_LAMBDA { store_up_to(to + i, load_up_to(x + i, m), m); });
}

SERIATIM_INLINE void keep(const float* x, int8_t* to, float* scale, int64_t n) {
  f32x16 sizes = zero(), doubt = zero();  // x - x is NaN where x is not finite
  sixteens(n, [&](int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA {
    const f32x16 v = load_up_to(x + i, m);
    sizes = select(abs(v) > sizes, abs(v), sizes);
    doubt = doubt + (v - v);
  });
  const float most = largest(sizes), inverse = 127 / most;
  const f32x16 factor = all(inverse <= 0x1.fffffep127f ? inverse : 0.0f);  // none: all zeros
  sixteens(n, [&](int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA {
    store_up_to(to + i, load_up_to(x + i, m) * factor, m);
  });
  *scale = most / 127 + reduce(doubt);
}

// ---- reading -----------------------------------------------------------------------------------

// Some slots as f32 [slot, width], zeros beyond the channels.
template <class KV>
SERIATIM_INLINE void unpack(const KV* from, const Shape& shape, Range slots, float* to) {
  for (int64_t j = slots.begin; j < slots.end; ++j)
    sixteens(shape.channels, [&](int64_t c, int64_t n) SERIATIM_INLINE_LAMBDA {
      store(to + j * shape.width + c, load_up_to(from + j * shape.channels + c, n));
    });
}

}  // namespace
}  // namespace seriatim
