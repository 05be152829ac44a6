// Do all instruction sets give the same bits? Runs every kernel of every one that this processor
// has on the same inputs and compares with `plain`. Weights, inputs, outputs and scratch end where
// memory ends, weights lie at odd addresses, and the stack starts at any multiple of 16.
//
//   cmake -B build -DCMAKE_EXE_LINKER_FLAGS=-static  # and nanobind_DIR, as for the module
//   cmake --build build --target isa_bits && build/isa_bits
//
// `isa_bits avx512` fails where there is no AVX-512. Bochs 2.7 emulates it (corei7_skylake_x): boot
// Linux from a CD with isa_bits as /init of its initramfs and the options `console=ttyS0
// clearcpuid=323,321 -- avx512` (else Linux finds the sizes of XSAVES and XSAVEC wrong, and turns
// AVX off). The serial port gets the report, then "Attempted to kill init! exitcode=0x00000000".
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <functional>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "plan.h"

namespace seriatim {
namespace {

using std::to_string;
using Values = std::vector<float>;

// ---- what is compared --------------------------------------------------------------------------

std::vector<const Isa*> runnable() {
  std::vector<const Isa*> isas{&kPlain};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    isas.push_back(&kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      isas.push_back(&kAvx512);
  }
#endif
  return isas;
}

const std::vector<const Isa*> kIsas = runnable();  // plain first

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

struct Tally {
  int64_t cases = 0, values = 0, wrong = 0, other_nan = 0;  // NaN in both, of different bits
};

std::array<Tally, 3> tallies;  // [isa], of one group
int failures = 0;

// Any NaN equals any other: which of two operands' NaN survives is up to the compiler.
void compare(size_t isa, const std::string& what, const Values& expected, const Values& got) {
  Tally& tally = tallies[isa];
  ++tally.cases;
  tally.values += static_cast<int64_t>(got.size());
  if (got.size() != expected.size()) ++tally.wrong;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    if (bits_of(got[i]) == bits_of(expected[i])) continue;
    const bool both_nan = got[i] != got[i] && expected[i] != expected[i];
    ++(both_nan ? tally.other_nan : tally.wrong);
    if (!both_nan && tally.wrong <= 3)
      std::printf("  %s %s [%zu]: %08x, plain %08x\n", kIsas[isa]->name, what.c_str(), i,
                  bits_of(got[i]), bits_of(expected[i]));
  }
}

// Calls `run` with every instruction set, each from another start of the stack.
void same(const std::string& what, const std::function<Values(const Isa&)>& run) {
  static unsigned turn = 0;
  Values expected;
  for (size_t i = 0; i < kIsas.size(); ++i) {
    volatile char* shift = static_cast<char*>(__builtin_alloca(16 * (1 + turn++ % 4)));
    shift[0] = 0;
    Values got = run(*kIsas[i]);
    i == 0 ? expected = std::move(got) : (compare(i, what, expected, got), expected);
  }
}

void report(const std::string& group) {
  for (size_t i = 1; i < kIsas.size(); ++i) {
    const Tally& t = tallies[i];
    std::printf("%s %s %s: %lld cases, %lld values, %lld differ", t.wrong ? "FAIL" : "PASS",
                kIsas[i]->name, group.c_str(), static_cast<long long>(t.cases),
                static_cast<long long>(t.values), static_cast<long long>(t.wrong));
    if (t.other_nan) std::printf("; %lld other NaN", static_cast<long long>(t.other_nan));
    std::puts("");
    failures += t.wrong > 0;
  }
  std::fflush(stdout);
  tallies = {};
}

// ---- inputs ------------------------------------------------------------------------------------

// Memory whose last byte is `slack` bytes before a page that cannot be touched.
class Fenced {
 public:
  explicit Fenced(size_t bytes, size_t slack = 0) {
    const size_t page = static_cast<size_t>(getpagesize());
    const size_t usable = (bytes + slack + page - 1) / page * page;
    length_ = usable + page;
    base_ = static_cast<char*>(
        mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + usable, page, PROT_NONE);
    data_ = base_ + usable - slack - bytes;
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() { munmap(base_, length_); }
  char* data() const { return data_; }
  float* floats() const { return reinterpret_cast<float*>(data_); }

 private:
  size_t length_;
  char *base_, *data_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  // A sign, any significand, and an exponent of -12 to 3.
  float value() {
    const uint32_t b = bits();
    return float_of((b & 0x807fffff) | (115 + bits() % 16) << 23);
  }

 private:
  uint64_t state_;
};

Values random_values(int64_t n, uint64_t seed) {
  Random random(seed);
  Values values(n);
  for (float& v : values) v = random.value();
  return values;
}

// Every exponent, infinities and NaN; the neighbourhoods of the functions' thresholds.
Values extreme_values() {
  Random random(7);
  Values values;
  for (uint32_t high = 0; high < 65536; ++high)
    values.push_back(float_of(high << 16 | (high % 4 ? random.bits() >> 16 : 0)));
  for (const float x : {0.625f, 0.3125f, 1.0f, 2.0f, 44.5f, 88.72f, 89.0f, 103.97f, 104.0f})
    for (int ulp = -8; ulp <= 8; ++ulp)
      for (const uint32_t sign : {0u, 0x80000000u})
        values.push_back(float_of((bits_of(x) + ulp) | sign));
  return values;
}

const char* const kTypes[] = {"f32", "f16", "bf16"};

// Random weights of a type, in the exponents that f16 has too; all 65536 patterns if `whole`.
std::vector<char> weights(Type type, int64_t n, uint64_t seed, bool whole = false) {
  Random random(seed);
  std::vector<char> bytes(n * kTypeBytes[static_cast<int>(type)]);
  for (int64_t i = 0; i < n; ++i) {
    const float x = random.value();
    const uint32_t b = bits_of(x);
    uint16_t half = static_cast<uint16_t>(i);
    if (!whole && type == Type::kBF16) half = static_cast<uint16_t>(b >> 16);
    if (!whole && type == Type::kF16)  // 1 in 16 subnormal
      half = static_cast<uint16_t>((b >> 16 & 0x8000) | random.bits() % 16 << 10 | (b & 0x3ff));
    type == Type::kF32 ? std::memcpy(bytes.data() + 4 * i, &x, 4)
                       : std::memcpy(bytes.data() + 2 * i, &half, 2);
  }
  return bytes;
}

// ---- one kernel --------------------------------------------------------------------------------

// A record without a plan. Vectors are f32; matrices lie at odd addresses.
struct Single {
  Record record;
  std::vector<Values> inputs;
  int64_t rows;
  std::vector<int32_t> index = {};  // ids, positions and rows
  int64_t workers = 1;

  Values operator()(const Isa& isa) const {
    std::vector<std::unique_ptr<Fenced>> memory;
    Call call{&record, {}, nullptr, rows, nullptr, nullptr};
    for (size_t i = 0; i < inputs.size(); ++i) {
      memory.push_back(std::make_unique<Fenced>(inputs[i].size() * sizeof(float)));
      std::memcpy(memory.back()->data(), inputs[i].data(), inputs[i].size() * sizeof(float));
      call.inputs[i] = memory.back()->floats();
    }
    const int32_t* at = index.data();
    const Batch batch{at, at, at, at, at, rows, 1, 1, rows};
    call.batch = &batch;
    Values result(rows * record.width_out);
    const Fenced output(result.size() * sizeof(float));
    call.output = output.floats();
    const size_t bytes = (isa.scratch(record) * sizeof(float) + 63) / 64 * 64;
    const Fenced scratch(bytes);
    std::memset(scratch.data(), 0xff, bytes);  // NaN
    for (int64_t w = 0; w < workers; ++w)
      isa.kernels[static_cast<int>(record.op)](call, Worker{w, workers, scratch.floats()});
    std::memcpy(result.data(), output.data(), result.size() * sizeof(float));
    return result;
  }
};

Record record_of(Op op, int64_t in, int64_t out, std::array<int64_t, 5> ints = {},
                 std::array<double, 2> floats = {}) {
  Record record{op, {}, 0, {}, in, out, {}, {}};
  std::copy(ints.begin(), ints.end(), record.ints);
  std::copy(floats.begin(), floats.end(), record.floats);
  return record;
}

// A tensor in fenced memory, a matrix at an odd address.
struct Held : Fenced {
  Held(Type type, const std::vector<char>& bytes, int64_t rows, int64_t columns)
      : Fenced(bytes.size(), rows > 1), tensor{type, data(), rows, columns} {
    std::memcpy(data(), bytes.data(), bytes.size());
  }
  const Tensor tensor;
};

Held vector_of(int64_t n, uint64_t seed) {
  return Held(Type::kF32, weights(Type::kF32, n, seed), 1, n);
}

// ---- groups ------------------------------------------------------------------------------------

void linear(Type type) {
  uint64_t seed = 0;
  for (const int64_t depth : {1, 15, 16, 17, 63, 100, 1024, 1030, 2100})
    for (const int64_t outputs : {1, 3, 4, 7, 50})
      for (const int64_t tokens : {1, 2, 5, 8, 9, 33, 40}) {
        ++seed;
        const Held w(type, weights(type, outputs * depth, seed), outputs, depth);
        const Held bias = vector_of(outputs, seed + 1);
        Record record = record_of(Op::kLinear, depth, outputs);
        record.tensors[0] = w.tensor;
        if (seed % 2) record.tensors[1] = bias.tensor;
        const Single run{
            record, {random_values(tokens * depth, seed + 2)}, tokens, {}, seed % 3 ? 1 : 3};
        same(to_string(depth) + " to " + to_string(outputs) + ", " + to_string(tokens) + " tokens",
             run);
      }
  report(std::string("linear ") + kTypes[static_cast<int>(type)]);
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

// ---- plans -------------------------------------------------------------------------------------

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
}  // namespace seriatim

// Arguments: instruction sets that must be among those compared.
int main(int argc, char** argv) {
  using namespace seriatim;
  for (const Isa* isa : kIsas) std::printf("runs: %s\n", isa->name);
  for (int i = 1; i < argc; ++i) {
    bool found = false;
    for (const Isa* isa : kIsas) found |= std::string(isa->name) == argv[i];
    if (!found) std::printf("FAIL: no %s on this processor\n", argv[i]);
    failures += !found;
  }
  embed();
  norm();
  rotary();
  attention();
  models();
  pointwise();
  for (const Type type : {Type::kF32, Type::kF16, Type::kBF16}) linear(type);
  linear_extreme();
  std::printf("%s\n", failures ? "FAIL" : "PASS: all bits equal");
  return failures ? 1 : 0;
}
