// What the groups of checks share: memory that ends where it ends, inputs, and the comparison of
// every instruction set that runs here with `plain`.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "isas.h"
#include "ops.h"

namespace seriatim {

using Values = std::vector<float>;

// ---- comparison --------------------------------------------------------------------------------

const std::vector<const Isa*>& runnable();  // plain first

// Calls `run` with every instruction set, each from another start of the stack. Any NaN equals any
// other: which of two operands' NaN survives is up to the compiler.
void same(const std::string& what, const std::function<Values(const Isa&)>& run);

// Prints what `same` saw since the last report; for plain a digest of all its values, to be
// compared with other builds' and other machines'.
void report(const std::string& group);

int failures();  // groups that differed, so far

// ---- inputs ------------------------------------------------------------------------------------

// Memory whose last byte is `slack` bytes before a page that cannot be touched.
class Fenced {
 public:
  explicit Fenced(size_t bytes, size_t slack = 0);
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced();
  char* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  size_t length_;
  char *base_, *data_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits();
  float value();  // a sign, any significand, and an exponent of -12 to 3

 private:
  uint64_t state_;
};

Values random_values(int64_t n, uint64_t seed);
// Every exponent, infinities and NaN; the neighbourhoods of the functions' thresholds.
Values extreme_values();

inline constexpr const char* kTypes[] = {"f32", "f16", "bf16", "int8", "int4", "int6"};
inline const char* name_of(Type type) { return kTypes[static_cast<int>(type)]; }

// Random weights row by row, in the exponents that f16 has too; all 65536 patterns if `whole`.
std::vector<char> weights(Type type, int64_t n, uint64_t seed, bool whole = false);
// Random weights in blocks; scales like f16 weights.
std::vector<char> blocks(Type type, int64_t rows, int64_t columns, uint64_t seed);

// A tensor in fenced memory, a matrix at an odd address.
struct Held : Fenced {
  Held(Type type, const std::vector<char>& bytes, int64_t rows, int64_t columns);
  const Tensor tensor;
};

Held vector_of(int64_t n, uint64_t seed);
Held matrix_of(Type type, int64_t rows, int64_t columns, uint64_t seed);  // of any type

// ---- one kernel --------------------------------------------------------------------------------

Record record_of(Op op, int64_t in, int64_t out, std::array<int64_t, 5> ints = {},
                 std::array<double, 2> floats = {});

// A record without a plan, in a pool of workers. Vectors are f32; scratch is NaN.
struct Single {
  Record record;
  std::vector<Values> inputs;
  int64_t rows;
  std::vector<int32_t> index = {};  // ids, positions and rows
  int64_t workers = 1;

  Values operator()(const Isa& isa) const;
};

// ---- groups ------------------------------------------------------------------------------------

void check_ops();
void check_products();
void check_plans();

}  // namespace seriatim
