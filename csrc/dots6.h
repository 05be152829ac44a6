// The dot of six-bit weights (kernels/formats.py, int6): two halves of a group, each with a whole
// number of its own for every row, by which its integer sum is multiplied before they are added.
//
// All of it is exact: a half's sum is below 16 * 32 * 127 in size, times at most 128, twice: below
// 2^24, where float32 still holds every integer.
#pragma once
#include "dots.h"

namespace seriatim {
namespace {

template <>
struct Dot<Type::kInt6> {
  static constexpr int kRegisters = 2;
  struct Weights {
    Ints low, high;
  };
  Ints sums[2] = {};

  // Vector v: its nibbles, and of high vector v / 2 the two bits that belong to them.
  SERIATIM_INLINE static Weights unpack(const uint8_t* tile, int v) {
    const Bits nibbles = unaligned<Bits>(tile + v * 64);
    const Bits bits = unaligned<Bits>(tile + 256 + v / 2 * 64);
    const Bits low = v % 2 ? bits : bits << 4, high = v % 2 ? bits >> 2 : bits << 2;
    return {low_nibbles((Ints)nibbles) | (Ints)(low & 0x30303030),
            high_nibbles((Ints)nibbles) | (Ints)(high & 0x30303030)};
  }

  SERIATIM_INLINE void add(Weights w, const int8_t* x, int v) {
    Ints& sum = sums[v / 2];
#if SERIATIM_DOT == 1
    const Ints two = add_pairs(pairs(w.low, spread(x)), pairs(w.high, spread(x + 4)));
    sum = in_turn(sum + widen_pairs(two, 1));  // 4 * 63 * 127 fits 16 bits, twice that does not
#else
    sum = add_fours(add_fours(sum, w.low, spread(x)), w.high, spread(x + 4));
#endif
  }

  // `factors`: int8 [half, row of the panel], at this register's first row.
  SERIATIM_INLINE Vec value(const int32_t (&offset)[2], const uint8_t* factors) const {
    const int8_t* at = reinterpret_cast<const int8_t*>(factors);
    const Vec first = less(sums[0], offset[0]) * load_part(at);
    return fma(less(sums[1], offset[1]), load_part(at + kPanel), first);
  }
};

}  // namespace
}  // namespace seriatim
