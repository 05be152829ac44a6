// Products: `linear`, and `product` with what it fuses.
#include <cstring>
#include <iterator>

#include "compare.h"

namespace seriatim {
namespace {

using std::to_string;

constexpr Type kAll[] = {Type::kF32,  Type::kF16,  Type::kBF16,
                         Type::kInt8, Type::kInt4, Type::kInt6};

void linear(Type type, const std::vector<int64_t>& depths, const std::vector<int64_t>& outputs,
            const std::vector<int64_t>& tokens) {
  uint64_t seed = 0;
  for (const int64_t depth : depths)
    for (const int64_t n : outputs)
      for (const int64_t t : tokens) {
        ++seed;
        const Held w = matrix_of(type, n, depth, seed), bias = vector_of(n, seed + 1);
        Record record = record_of(Op::kLinear, depth, n);
        record.tensors[0] = w.tensor;
        if (seed % 2) record.tensors[1] = bias.tensor;
        const int64_t workers = 1 + static_cast<int64_t>(seed % 3);
        same(to_string(depth) + " to " + to_string(n) + ", " + to_string(t) + " tokens",
             Single{record, {random_values(t * depth, seed + 2)}, t, {}, workers});
      }
  report(std::string("linear ") + name_of(type));
}

// Infinities, NaN, subnormals and overflow in x and weights.
void linear_extreme() {
  const Values extreme = extreme_values();
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16})
    for (const int64_t depth : {3, 64, 1000}) {
      const int64_t outputs = 65536 / depth, tokens = 9;
      std::vector<char> bytes = weights(type, outputs * depth, 5, true);
      if (type == Type::kF32) std::memcpy(bytes.data(), extreme.data(), bytes.size());
      const Held w(type, bytes, outputs, depth);
      Record record = record_of(Op::kLinear, depth, outputs);
      record.tensors[0] = w.tensor;
      Values x = random_values(tokens * depth, depth);
      for (size_t i = 0; i < x.size(); i += 7) x[i] = extreme[i * 7919 % extreme.size()];
      for (const int64_t n : {int64_t{1}, tokens}) same("extreme", Single{record, {x}, n});
    }
  report("linear, extreme values");
}

// The same for blocks, whose groups of 32 inputs are now tiny, now huge, now not finite; weights
// and inputs of the largest sizes, whose sums of products are the largest.
void blocks_extreme() {
  const Values extreme = extreme_values();
  for (const Type type : {Type::kInt8, Type::kInt4, Type::kInt6})
    for (const char fill : {'\x00', '\x7f', '\x80', '\xff'}) {
      const int64_t depth = 200, outputs = 33,
                    tokens = static_cast<int64_t>(extreme.size()) / depth;
      std::vector<char> bytes = blocks(type, outputs, depth, 6);
      const int64_t panel = panel_bytes(type), tiles = 2 * tile_bytes(type);
      for (size_t at = 0; fill && at < bytes.size(); at += panel)
        std::memset(bytes.data() + at, fill, tiles);
      const Held w(type, bytes, outputs, depth);
      Record record = record_of(Op::kLinear, depth, outputs);
      record.tensors[0] = w.tensor;
      Values x = extreme;
      for (size_t i = 0; fill && i < x.size(); ++i) x[i] = i % 64 < 32 ? 127.0f : -127.0f;
      for (const int64_t n : {int64_t{1}, tokens}) same("extreme", Single{record, {x}, n, {}, 2});
    }
  report("blocks, extreme values");
}

struct Fused {
  Type type;
  int64_t depth, outputs, tokens, norm, finish, linears;
  uint64_t seed;

  void check() const {
    const int64_t width = finish == kAsIs ? linears * outputs : outputs;
    const int64_t activation = static_cast<int64_t>(seed % std::size(kActivations));
    Record record = record_of(Op::kProduct, depth, width, {norm, finish, activation}, {1e-5});
    const Held gain = vector_of(depth, seed), shift = vector_of(depth, seed + 1);
    if (norm >= 0 && seed % 2) record.tensors[kProductNormWeight] = gain.tensor;
    if (norm >= 0 && seed % 3 == 0) record.tensors[kProductNormBias] = shift.tensor;
    const Held w[] = {matrix_of(type, outputs, depth, seed + 2),
                      matrix_of(type, outputs, depth, seed + 3),
                      matrix_of(type, outputs, depth, seed + 4)};
    const Held bias = vector_of(outputs, seed + 5);
    for (int64_t i = 0; i < linears; ++i) {
      record.tensors[kProductWeight + 2 * i] = w[i].tensor;
      if ((seed + i) % 2) record.tensors[kProductWeight + 2 * i + 1] = bias.tensor;
    }
    std::vector<Values> inputs{random_values(tokens * depth, seed + 6)};
    if (finish == kAdded) inputs.push_back(random_values(tokens * width, seed + 7));
    const int64_t workers = 1 + static_cast<int64_t>(seed % 3);
    same(std::string(kFinishes[finish]) + ", " + to_string(tokens) + " tokens",
         Single{record, inputs, tokens, {}, workers});
  }
};

void fused() {
  uint64_t seed = 1000;
  for (const Type type : kAll) {
    for (const int64_t finish : {kAsIs, kAdded, kGated, kActivated})
      for (const int64_t norm : {-1, int{kRms}, int{kLayerNorm}})
        for (const int64_t tokens : {1, 3, 7, 9, 130}) {
          const int64_t linears = finish == kGated ? 2 : finish == kAsIs ? 1 + seed % 3 : 1;
          const int64_t depth = seed % 2 ? 100 : 64, outputs = seed % 5 ? 50 : 17;
          Fused{type, depth, outputs, tokens, norm, finish, linears, ++seed}.check();
        }
    report(std::string("product ") + name_of(type));
  }
}

}  // namespace

void check_products() {
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16})
    linear(type, {1, 15, 16, 17, 63, 100, 1024, 1030, 2100}, {1, 3, 4, 7, 50},
           {1, 2, 5, 8, 9, 33, 40});
  std::vector<int64_t> tokens{130};  // beyond what waits together for the finish
  for (int64_t t = 1; t <= 20; ++t) tokens.push_back(t);
  for (const Type type : {Type::kInt8, Type::kInt4, Type::kInt6})
    linear(type, {1, 31, 32, 33, 100, 1056}, {1, 15, 16, 17, 33, 130}, tokens);
  fused();
  linear_extreme();
  blocks_extreme();
}

}  // namespace seriatim
