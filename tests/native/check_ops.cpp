// Every op on its own but products and attention; the survey of logits.
#include <cmath>
#include <iterator>

#include "compare.h"

namespace seriatim {
namespace {

using std::to_string;

void embed() {
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16})
    for (const int64_t width : {1, 15, 16, 17, 63, 64, 256}) {
      const int64_t rows = 65536 / width;
      const Held table(type, weights(type, rows * width, 3, true), rows, width);
      Record record = record_of(Op::kEmbed, 0, width, {kIds});
      record.tensors[0] = table.tensor;
      std::vector<int32_t> ids(rows);
      for (int64_t i = 0; i < rows; ++i) ids[i] = static_cast<int32_t>((i * 7 + 1) % rows);
      same(to_string(width), Single{record, {}, rows, ids, 2});
    }
  report("embed");
  for (const Type type : {Type::kInt8, Type::kInt4, Type::kInt6})
    for (const int64_t width : {1, 31, 32, 33, 100}) {
      const int64_t rows = 77;
      const Held table = matrix_of(type, rows, width, 4);
      Record record = record_of(Op::kEmbed, 0, width, {kIds});
      record.tensors[0] = table.tensor;
      std::vector<int32_t> ids(rows);
      for (int64_t i = 0; i < rows; ++i) ids[i] = static_cast<int32_t>((i * 7 + 1) % rows);
      same(to_string(width), Single{record, {}, rows, ids, 2});
    }
  report("embed blocks");
}

void norm() {
  uint64_t seed = 100;
  for (const int64_t kind : {kRms, kLayerNorm})
    for (const int64_t channels : {1, 2, 15, 16, 17, 63, 80, 1030})
      for (const int64_t heads : {1, 3})
        for (const int64_t tokens : {1, 5}) {
          const Held w = vector_of(channels, ++seed), bias = vector_of(channels, seed + 1);
          Record record =
              record_of(Op::kNorm, heads * channels, heads * channels, {kind, heads}, {1e-5});
          if (seed % 2) record.tensors[0] = w.tensor;
          if (seed % 4 < 2) record.tensors[1] = bias.tensor;
          same(to_string(channels),
               Single{record, {random_values(tokens * heads * channels, seed)}, tokens});
        }
  report("norm");
}

void pointwise() {
  const Values x = extreme_values();
  Values y(x.rbegin(), x.rend());
  const int64_t width = 51, rows = static_cast<int64_t>(x.size()) / width;
  const auto one = [&](Op op, const std::string& name, int64_t kind, double value) {
    const Record record = record_of(op, width, width, {kind}, {value});
    same(name, Single{record, {x, y}, rows, {}, 3});
  };
  for (int64_t kind = 0; kind < std::ssize(kActivations); ++kind) {
    one(Op::kActivate, kActivations[kind], kind, 0);
    report(std::string("activate ") + kActivations[kind]);
  }
  for (int64_t kind = 0; kind < std::ssize(kActivations); ++kind)
    one(Op::kGate, kActivations[kind], kind, 0);
  report("gate");
  one(Op::kAdd, "add", 0, 0);
  one(Op::kScale, "scale", 0, 0.3);
  for (const double cap : {30.0, 1e-3, 1e30}) one(Op::kSoftcap, "softcap", 0, cap);
  report("add, scale, softcap");
  std::vector<int32_t> some;
  for (int32_t i = 0; i < rows; i += 3) some.push_back(i);
  const auto picked = static_cast<int64_t>(some.size());
  same("rows", Single{record_of(Op::kRows, width, width), {x}, picked, some});
  report("rows");
}

void rotary() {
  std::vector<int32_t> positions{0, 1, 2, 63, 64, 4095, 131071, 1 << 24, INT32_MAX};
  for (const int64_t pairs : {1, 3, 8, 32, 37}) {
    const Held frequency = vector_of(pairs, pairs);
    Record record = record_of(Op::kRotary, 0, 2 * pairs, {}, {1.3});
    record.tensors[0] = frequency.tensor;
    same(to_string(pairs), Single{record, {}, std::ssize(positions), positions});
  }
  report("rotary");
  for (const int64_t layout : {kHalf, kInterleaved})
    for (const int64_t channels : {2, 6, 64, 80, 130})
      for (const int64_t turned : {int64_t{2}, channels / 2 / 2 * 2, channels}) {
        const int64_t heads = 3, tokens = 4;
        if (!turned) continue;
        const Record record =
            record_of(Op::kRope, heads * channels, heads * channels, {heads, layout, turned});
        same(to_string(channels), Single{record,
                                         {random_values(tokens * heads * channels, channels),
                                          random_values(tokens * turned, turned)},
                                         tokens});
      }
  report("rope");
}

// Random logits; each in turn the largest, one of two largest, infinite or NaN.
void survey() {
  for (const int64_t n : {1, 15, 16, 17, 40, 1023, 1024, 1025, 3000})
    for (int64_t at = 0; at < n; at += 1 + n / 7)
      for (const float special : {9e9f, INFINITY, -INFINITY, NAN}) {
        Values logits = random_values(n, n);
        logits[at] = special;
        logits[n - 1 - at] = special;
        same(to_string(n), [&](const Isa& isa) -> Values {
          const Fenced memory(n * sizeof(float));
          std::copy(logits.begin(), logits.end(), memory.floats());
          const Survey found = isa.survey(memory.floats(), n);
          const bool finite = found.finite;
          if (!finite) return {0.0f};  // the rest is not used
          return {found.best, static_cast<float>(found.index), 1.0f};
        });
      }
  report("survey");
}

}  // namespace

void check_ops() {
  embed();
  norm();
  rotary();
  survey();
  pointwise();
}

}  // namespace seriatim
