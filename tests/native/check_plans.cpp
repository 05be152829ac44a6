// Plans: attention over several steps, and a model.
#include <algorithm>
#include <cstdio>

#include "compare.h"
#include "plan.h"

namespace seriatim {
namespace {

using std::to_string;

std::vector<int32_t> counted(int64_t n, int32_t from) {
  std::vector<int32_t> values(n);
  for (int32_t& v : values) v = from++;
  return values;
}

struct Attention {
  Type kv;
  int64_t heads, kv_heads, channels, window;
  double softcap;

  // 70 tokens at once, then 5, 1, 33 and 1; blocks out of order and full of NaN before.
  Values operator()(const Isa& isa) const {
    const int64_t q = heads * channels, k = kv_heads * channels;
    constexpr int64_t kMost = 128;
    Plan plan(isa, 2, false, kv, {{kv_heads, channels}}, {{'T', q}, {'T', k}, {'T', k}, {'T', q}});
    const std::vector<char> table = weights(Type::kF32, kMost * q, 11);
    const int query = plan.tensor(table.data(), Type::kF32, {kMost, q});
    const int key = plan.tensor(table.data() + 4, Type::kF32, {kMost - 1, k});
    const int value = plan.tensor(table.data() + 8, Type::kF32, {kMost - 1, k});
    plan.add(static_cast<int>(Op::kEmbed), {}, {query}, 0, {kIds}, {});
    plan.add(static_cast<int>(Op::kEmbed), {}, {key}, 1, {kIds}, {});
    plan.add(static_cast<int>(Op::kEmbed), {}, {value}, 2, {kIds}, {});
    plan.add(static_cast<int>(Op::kAttention), {0, 1, 2}, {}, 3, {0, heads, kv_heads, 0, window},
             {0.3, softcap});
    plan.resize(3);
    for (int64_t b = 0; b < 3; ++b) plan.poison(b);
    Values all;
    int32_t position = 0;
    for (const int64_t tokens : {70, 5, 1, 33, 1}) {
      std::vector<int32_t> ids = counted(tokens, position);
      for (int32_t& id : ids) id = id * 37 % (kMost - 1);
      const Result result = plan.step(
          {ids, counted(tokens, position), std::vector<int32_t>(tokens), {2, 0, 1}, {}, 1, 3});
      all.insert(all.end(), result.data.get(), result.data.get() + result.rows * result.width);
      position += static_cast<int32_t>(tokens);
    }
    return all;
  }
};

void attention() {
  for (const Type kv : {Type::kF32, Type::kBF16}) {
    for (const int64_t channels : {1, 5, 16, 64, 80, 100})
      for (const int64_t window : {0, 7, 65})
        for (const double cap : {0.0, 5.0}) {
          const bool grouped = channels % 2;
          same(to_string(channels) + " channels, window " + to_string(window),
               Attention{kv, grouped ? 6 : 2, grouped ? 2 : 1, channels, window, cap});
        }
    report(std::string("attention ") + kTypes[static_cast<int>(kv)]);
  }
}

// A model of one layer, all ops after one another, three workers, two sequences.
struct Model {
  Type type;

  Values operator()(const Isa& isa) const {
    constexpr int64_t kVocabulary = 61, kWidth = 84, kHeads = 6, kChannels = 14, kInner = 130;
    constexpr int64_t kKv = 2 * kChannels;
    std::vector<Slot> slots{{'R', kWidth}, {'R', kVocabulary}, {'T', kChannels}};
    slots.insert(slots.end(), 4, {'T', kWidth});
    slots.insert(slots.end(), 3, {'T', kKv});
    slots.insert(slots.end(), 3, {'T', kInner});
    constexpr int kPicked = 0, kLogits = 1, kAngles = 2, kA = 3, kB = 4, kC = 5, kD = 6, kKey = 7,
                  kTurned = 8, kValue = 9, kGated = 10, kUp = 11, kDown = 12;
    Plan plan(isa, 3, false, Type::kBF16, {{2, kChannels}}, slots);
    std::vector<std::vector<char>> held;
    const auto tensor = [&](const std::vector<int64_t>& shape) {
      const int64_t n = shape.size() == 2 ? shape[0] * shape[1] : shape[0];
      held.push_back(weights(type, n, held.size()));
      return plan.tensor(held.back().data(), type, shape);
    };
    const auto add = [&](Op op, std::vector<int> inputs, std::vector<int> tensors, int output,
                         std::vector<int64_t> ints, std::vector<double> floats) {
      plan.add(static_cast<int>(op), inputs, tensors, output, ints, floats);
    };
    const int table = tensor({kVocabulary, kWidth});
    add(Op::kEmbed, {}, {table}, kA, {kIds}, {});
    add(Op::kRotary, {}, {tensor({kChannels / 2})}, kAngles, {}, {1.0});
    add(Op::kNorm, {kA}, {tensor({kWidth}), -1}, kB, {kRms, 1}, {1e-6});
    add(Op::kLinear, {kB}, {tensor({kWidth, kWidth}), tensor({kWidth})}, kC, {}, {});
    add(Op::kLinear, {kB}, {tensor({kKv, kWidth}), -1}, kKey, {}, {});
    add(Op::kLinear, {kB}, {tensor({kKv, kWidth}), -1}, kValue, {}, {});
    add(Op::kRope, {kC, kAngles}, {}, kD, {kHeads, kHalf}, {});
    add(Op::kRope, {kKey, kAngles}, {}, kTurned, {2, kInterleaved}, {});
    add(Op::kAttention, {kD, kTurned, kValue}, {}, kC, {0, kHeads, 2, 0, 0}, {0.26, 0.0});
    add(Op::kLinear, {kC}, {tensor({kWidth, kWidth}), -1}, kD, {}, {});
    add(Op::kScale, {kD}, {}, kC, {}, {0.01});
    add(Op::kAdd, {kA, kC}, {}, kB, {}, {});
    add(Op::kNorm, {kB}, {tensor({kWidth}), tensor({kWidth})}, kD, {kLayerNorm, 1}, {1e-5});
    add(Op::kLinear, {kD}, {tensor({kInner, kWidth}), -1}, kUp, {}, {});
    add(Op::kLinear, {kD}, {tensor({kInner, kWidth}), -1}, kGated, {}, {});
    add(Op::kGate, {kGated, kUp}, {}, kDown, {kSilu}, {});
    add(Op::kLinear, {kDown}, {tensor({kWidth, kInner}), -1}, kD, {}, {});
    add(Op::kActivate, {kD}, {}, kA, {kGeluTanh}, {});
    add(Op::kRows, {kA}, {}, kPicked, {}, {});
    add(Op::kLinear, {kPicked}, {table, -1}, kLogits, {}, {});
    plan.resize(4);
    Values all;
    for (int32_t step = 0; step < 3; ++step) {
      const int32_t first = 40 * step;
      Step both{
          counted(60, 0), counted(40, first), std::vector<int32_t>(40), {3, 1, 0, 2}, {}, 2, 2};
      const std::vector<int32_t> rest = counted(20, 20 * step);
      both.position.insert(both.position.end(), rest.begin(), rest.end());
      both.sequence.insert(both.sequence.end(), 20, 1);
      both.rows = {0, 1, 2, 5, 17, 39, 40, 50, 59};
      const Result result = plan.step(both);
      all.insert(all.end(), result.data.get(), result.data.get() + result.rows * result.width);
    }
    return all;
  }
};

void models() {
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16})
    same(kTypes[static_cast<int>(type)], Model{type});
  report("model");
}

}  // namespace

void check_plans() {
  attention();
  models();
}

}  // namespace seriatim
