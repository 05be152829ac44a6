// The sampler's loops over a whole vocabulary, worth an instruction set of their own. Results are
// maxima and exact integers, so they cannot depend on it.
//
// Read by translation units with different instruction set flags: no functions here.
#pragma once
#include <cstdint>

namespace seriatim {

inline constexpr int64_t kRun = 64;  // values that share a maximum

// What Philox4x32-10 is keyed by, beside an id: contracts.md, 10.
struct Key {
  uint64_t seed;
  uint32_t position, sample;
};

// Of four neighbouring ids.
struct Words {
  uint32_t word[4];
};

struct Scan {
  const char* name;
  void (*maxima)(const float* x, int64_t n, double* out);         // [n / kRun, rounded up]
  uint64_t (*total)(const float* x, int64_t n, double top);       // sum of weight(x - top)
  void (*weigh)(const double* z, int64_t n, uint64_t* out);       // weight(z), z <= 0
  void (*noise)(const uint32_t* groups, int64_t n, Key, Words*);  // of ids 4 group .. 4 group + 3
};
extern const Scan kScanPlain, kScanAvx2, kScanAvx512;

}  // namespace seriatim
