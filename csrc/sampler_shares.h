// Shares of sums of integer weights, and buckets that put weights and distances in order.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "sampler_scores.h"

namespace seriatim {

inline constexpr uint64_t kOne = uint64_t{1} << 40;  // the weight of the best

// ceil(share * total), exactly: share = m 2^-s with 53 bits of m, total < 2^64.
inline uint64_t share_of(double share, uint64_t total) {
  if (share == 0.0) return 0;
  int exponent;
  const auto m = static_cast<uint64_t>(std::ldexp(std::frexp(share, &exponent), 53));
  const int s = 53 - exponent;
  if (s > 120) return 1;
  using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide{m} * total + ((Wide{1} << s) - 1)) >> s);
}

// Weights in order: 64 buckets for each power of two.
inline constexpr int kBucketBits = 6;
inline constexpr int64_t kBuckets = (40 << kBucketBits) + 1;
inline int64_t bucket(uint64_t weight) {
  const auto bits = std::bit_cast<int64_t>(static_cast<double>(weight));
  return (bits >> (52 - kBucketBits)) - (int64_t{1023} << kBucketBits);
}

// Distances from the typical: 64 buckets for each unit, the last for all beyond.
inline constexpr int64_t kFarBuckets = 64 << 6;
inline int64_t far_bucket(double far) {
  return far < 63.0 ? static_cast<int64_t>(far * 64.0) : kFarBuckets - 1;
}

inline double mean_of(Moments sums) {
  return static_cast<double>(sums.lost) / static_cast<double>(sums.total);
}

inline uint64_t xtc_goal(const Chain& chain, uint64_t total) {
  return std::max<uint64_t>(1, share_of(chain.xtc_threshold, total));
}

}  // namespace seriatim
