// Plans: attention over several steps, and a model.
#include <array>

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

constexpr int64_t kMost = 128;  // rows of a table

// Two sequences, whose tokens come many and few at a time, in blocks out of order that are full of
// NaN before.
Values steps(Plan& plan) {
  plan.resize(6);
  for (int64_t b = 0; b < 6; ++b) plan.poison(b);
  Values all;
  std::array<int32_t, 2> position{};
  for (const std::array<int64_t, 2> tokens :
       {std::array<int64_t, 2>{70, 3}, {5, 60}, {1, 1}, {33, 0}, {1, 2}}) {
    Step step{{}, {}, {}, {2, 0, 1, 5, 3, 4}, {}, 2, 3};
    for (int32_t s = 0; s < 2; ++s)
      for (int64_t i = 0; i < tokens[s]; ++i) {
        step.ids.push_back(position[s] * 37 % (kMost - 1));
        step.position.push_back(position[s]++);
        step.sequence.push_back(s);
      }
    const Result result = plan.step(std::move(step));
    all.insert(all.end(), result.data.get(), result.data.get() + result.rows * result.width);
  }
  return all;
}

struct Attention {
  Type kv;
  int64_t heads, kv_heads, channels, window;
  double softcap;

  Values operator()(const Isa& isa) const {
    const int64_t q = heads * channels, k = kv_heads * channels;
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
    return steps(plan);
  }
};

void attention() {
  for (const Type kv : {Type::kF32, Type::kBF16, Type::kInt8}) {
    for (const int64_t channels : {1, 5, 16, 64, 80, 100})
      for (const int64_t window : {0, 7, 65})
        for (const double cap : {0.0, 5.0}) {
          const bool grouped = channels % 2;
          same(to_string(channels) + " channels, window " + to_string(window),
               Attention{kv, grouped ? 6 : 2, grouped ? 2 : 1, channels, window, cap});
        }
    report(std::string("attention ") + name_of(kv));
  }
}

// With norms (-1: none) and ropes (-1: none) in it; three workers.
struct Attend {
  Type kv;
  int64_t heads, kv_heads, channels, norm, layout, turned, window;

  Values operator()(const Isa& isa) const {
    const int64_t width = (heads + 2 * kv_heads) * channels;
    Plan plan(isa, 3, false, kv, {{kv_heads, channels}},
              {{'T', width}, {'T', turned ? turned : 2}, {'T', heads * channels}});
    std::vector<std::vector<char>> held;
    const auto tensor = [&](const std::vector<int64_t>& shape) {
      const int64_t n = shape.size() == 2 ? shape[0] * shape[1] : shape[0];
      held.push_back(weights(Type::kF32, n, held.size() + channels));
      return plan.tensor(held.back().data(), Type::kF32, shape);
    };
    const auto vector = [&](bool there) { return there ? tensor({channels}) : -1; };
    plan.add(static_cast<int>(Op::kEmbed), {}, {tensor({kMost, width})}, 0, {kIds}, {});
    if (turned) plan.add(static_cast<int>(Op::kRotary), {}, {tensor({turned / 2})}, 1, {}, {1.0});
    const bool normed = norm >= 0, shifted = norm == kLayerNorm;
    const std::vector<int> inputs = turned ? std::vector{0, 1} : std::vector{0};
    plan.add(static_cast<int>(Op::kAttend), inputs,
             {vector(normed), vector(shifted), vector(normed), vector(shifted)}, 2,
             {0, heads, kv_heads, 0, window, norm, layout}, {0.3, 0.0, 1e-5, 1e-3});
    return steps(plan);
  }
};

void attend() {
  for (const Type kv : {Type::kF32, Type::kBF16, Type::kInt8}) {
    for (const int64_t channels : {2, 14, 64, 80})
      for (const int64_t norm : {-1, int{kRms}, int{kLayerNorm}})
        for (const int64_t layout : {-1, int{kHalf}, int{kInterleaved}})
          for (const int64_t window : {0, 65}) {
            const int64_t turned = layout < 0 ? 0 : window ? 2 : channels;
            const int64_t heads = channels % 4 ? 6 : 3, kv_heads = channels % 4 ? 2 : 1;
            same(to_string(channels) + " channels, norm " + to_string(norm),
                 Attend{kv, heads, kv_heads, channels, norm, layout, turned, window});
          }
    report(std::string("attend ") + name_of(kv));
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
  attend();
  models();
}

}  // namespace seriatim
