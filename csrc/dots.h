// Dot products of small integers, exact in every instruction set: unsigned weights, one row in each
// 32-bit lane, with four signed inputs that are the same for all rows.
//
// `Dot<type>` is the sums of one register of rows while it goes through a group of 32 columns:
// `unpack` reads stored vector v (kernels/formats.py) once for all tokens, `add` takes it in, and
// `value` gives each row's sum of weight * x less `offset`, as f32, which holds it exactly.
// Integers have no rounding, so how they are added is each instruction set's own affair:
//
// A translation unit sets SERIATIM_DOT:
//
//   0  plain     SSE2's pmaddwd adds two products of 16-bit integers; else one product at a time
//   1  AVX2/512  vpmaddubsw adds two products into 16 bits; a nibble is at most 15 and |x| at most
//                127, so eight such sums stay below 2^15. A byte is taken as two nibbles.
//   2  VNNI      vpdpbusd adds four products into 32 bits
//   3  NEON      sdot, on signed bytes: weights with their top bit turned, which subtracts 128
#pragma once
#include "ops.h"
#include "simd.h"

namespace seriatim {
namespace {

// Four inputs, as they lie, in every lane.
SERIATIM_INLINE Ints spread(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return four - Ints{};
}

// GCC would else make all products of a group first and put them by in memory.
SERIATIM_INLINE Ints in_turn(Ints sum) { return in_register(sum); }

// Wraps where inputs were not finite: their integers mean nothing, and their scale is not finite.
SERIATIM_INLINE Vec less(Ints sum, int32_t offset) {
  return __builtin_convertvector((Ints)((Bits)sum - static_cast<uint32_t>(offset)), Vec);
}

SERIATIM_INLINE Ints low_nibbles(Ints w) { return w & 0x0f0f0f0f; }
SERIATIM_INLINE Ints high_nibbles(Ints w) { return (Ints)((Bits)w >> 4) & 0x0f0f0f0f; }

#if SERIATIM_DOT == 1

#if SERIATIM_WIDTH == 16
SERIATIM_INLINE Ints pairs(Ints w, Ints x) {
  return (Ints)_mm512_maddubs_epi16((__m512i)w, (__m512i)x);
}
SERIATIM_INLINE Ints add_pairs(Ints a, Ints b) {
  return (Ints)_mm512_add_epi16((__m512i)a, (__m512i)b);
}
SERIATIM_INLINE Ints widen_pairs(Ints a, int16_t factor) {
  return (Ints)_mm512_madd_epi16((__m512i)a, _mm512_set1_epi16(factor));
}
#else
SERIATIM_INLINE Ints pairs(Ints w, Ints x) {
  return (Ints)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
}
SERIATIM_INLINE Ints add_pairs(Ints a, Ints b) {
  return (Ints)_mm256_add_epi16((__m256i)a, (__m256i)b);
}
SERIATIM_INLINE Ints widen_pairs(Ints a, int16_t factor) {
  return (Ints)_mm256_madd_epi16((__m256i)a, _mm256_set1_epi16(factor));
}
#endif

template <Type>
struct Dot;

template <>
struct Dot<Type::kInt4> {
  static constexpr int kRegisters = 1;
  struct Weights {
    Ints low, high;
  };
  Ints sum = {};
  SERIATIM_INLINE static Weights unpack(const uint8_t* tile, int v) {
    const Ints w = unaligned<Ints>(tile + v * 64);
    return {low_nibbles(w), high_nibbles(w)};
  }
  SERIATIM_INLINE void add(Weights w, const int8_t* x, int) {
    sum = in_turn(add_pairs(sum, pairs(w.low, spread(x))));
    sum = in_turn(add_pairs(sum, pairs(w.high, spread(x + 4))));
  }
  SERIATIM_INLINE Vec value(const int32_t (&offset)[2], const uint8_t*) const {
    return less(widen_pairs(sum, 1), offset[0]);
  }
};

template <>
struct Dot<Type::kInt8> {
  static constexpr int kRegisters = 2;
  using Weights = Dot<Type::kInt4>::Weights;
  Ints low = {}, high = {};
  SERIATIM_INLINE static Weights unpack(const uint8_t* tile, int v) {
    const Ints w = unaligned<Ints>(tile + v * 64);
    return {low_nibbles(w), high_nibbles(w)};
  }
  SERIATIM_INLINE void add(Weights w, const int8_t* x, int) {
    const Ints four = spread(x);
    low = in_turn(add_pairs(low, pairs(w.low, four)));
    high = in_turn(add_pairs(high, pairs(w.high, four)));
  }
  SERIATIM_INLINE Vec value(const int32_t (&offset)[2], const uint8_t*) const {
    return less(widen_pairs(low, 1) + widen_pairs(high, 16), offset[0]);
  }
};

#else

#if SERIATIM_DOT == 2
#if SERIATIM_WIDTH == 16
SERIATIM_INLINE Ints add_fours(Ints sum, Ints w, Ints x) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
}
#else
SERIATIM_INLINE Ints add_fours(Ints sum, Ints w, Ints x) {
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#endif
#elif SERIATIM_DOT == 3
SERIATIM_INLINE Ints add_fours(Ints sum, Ints w, Ints x) {
  return (Ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
}
#elif defined(__SSE2__)
// Bytes 0 and 2, then 1 and 3, each widened to 16 bits.
SERIATIM_INLINE Ints add_fours(Ints sum, Ints w, Ints x) {
  using Shorts = int16_t __attribute__((vector_size(16)));
  const __m128i even = (__m128i)((Shorts)((Bits)x << 8) >> 8), odd = (__m128i)((Shorts)x >> 8);
  sum += (Ints)_mm_madd_epi16((__m128i)(w & 0x00ff00ff), even);
  return sum + (Ints)_mm_madd_epi16((__m128i)((Bits)w >> 8 & 0x00ff00ff), odd);
}
#else
SERIATIM_INLINE Ints add_fours(Ints sum, Ints w, Ints x) {
  SERIATIM_UNROLL for (int b = 0; b < 32; b += 8) {
    const Ints weight = (Ints)((Bits)w >> b & 0xff), input = (Ints)((Bits)x << (24 - b)) >> 24;
    sum += weight * input;
  }
  return sum;
}
#endif

template <Type kType>
struct Dot {
  static constexpr int kRegisters = 1;
  static constexpr bool kNibbles = kType == Type::kInt4;
  // sdot takes signed bytes: w - 128 then, and the offset is there already.
  static constexpr bool kTurned = SERIATIM_DOT == 3 && !kNibbles;
  struct Weights {
    Ints low, high;
  };
  Ints sum = {};
  SERIATIM_INLINE static Weights unpack(const uint8_t* tile, int v) {
    const Ints w = unaligned<Ints>(tile + v * 64);
    if (kNibbles) return {low_nibbles(w), high_nibbles(w)};
    return {kTurned ? (Ints)((Bits)w ^ 0x80808080) : w, Ints{}};
  }
  SERIATIM_INLINE void add(Weights w, const int8_t* x, int) {
    sum = add_fours(sum, w.low, spread(x));
    if (kNibbles) sum = add_fours(sum, w.high, spread(x + 4));
  }
  SERIATIM_INLINE Vec value(const int32_t (&offset)[2], const uint8_t*) const {
    return less(sum, kTurned ? 0 : offset[0]);
  }
};

#endif

}  // namespace
}  // namespace seriatim
