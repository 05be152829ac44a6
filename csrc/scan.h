// The sampler's loops over a whole vocabulary, worth an instruction set of their own. Results are
// maxima and exact integers, so they cannot depend on it.
//
// Read by translation units with different instruction set flags: no functions here.
#pragma once
#include <cstdint>

namespace seriatim {

inline constexpr int64_t kRun = 64;      // values that share a maximum
inline constexpr double kWeighs = 28.5;  // a weight further below the best is 0

// What Philox4x32-10 is keyed by, beside an id: contracts.md, 10.
struct Key {
  uint64_t seed;
  uint32_t position, sample;
  uint32_t use = 0;  // 0: noise of ids; 1: XTC's coin
};

// Sums of weights, and of weights times -z: exact integers.
struct Moments {
  uint64_t total, lost;
};

struct Scan {
  const char* name;
  // Maxima of the runs; of those values alone whose bit is set in `with` and not set in `without`,
  // [run], where these are given.
  void (*maxima)(const float* x, int64_t n, const uint64_t* with, const uint64_t* without,
                 double* out);
  // In double precision; NaN, which nobody should bring, as -infinity.
  void (*widen)(const float* x, int64_t n, double* out);
  // Sum of weight(x - top).
  uint64_t (*total)(const float* x, int64_t n, double top);
  // Sum of weight((x - top) / temperature).
  uint64_t (*total_scaled)(const double* x, int64_t n, double top, double temperature);
  // Adds weight(z) and round(weight(z) * -z), z = (x - top) / temperature.
  void (*moments)(const double* x, int64_t n, double top, double temperature, Moments& sums);
  // weight(z), z <= 0.
  void (*weigh)(const double* z, int64_t n, uint64_t* out);
  // Random words of a run of ids, [id & 3][id >> 2]; returns the greatest.
  uint64_t (*noise)(int64_t run, Key key, uint64_t* words);
};
extern const Scan kScanPlain, kScanAvx2, kScanAvx512;

}  // namespace seriatim
