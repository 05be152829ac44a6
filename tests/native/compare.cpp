#include "compare.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

#include "threads.h"

namespace seriatim {
namespace {

uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

bool can_run(const Choice& choice) {
  return std::all_of(choice.lacks.begin(), choice.lacks.end(), [](const std::string& feature) {
#ifdef SERIATIM_EMULATE_VNNI
    return feature == "avx512vnni" || feature == "avxvnni";
#else
    return feature.empty();
#endif
  });
}

struct Tally {
  int64_t cases = 0, values = 0, wrong = 0, other_nan = 0;  // NaN in both, of different bits
  uint64_t digest = 0xcbf29ce484222325;                     // FNV-1a of the values, NaN all one
};

std::map<const Isa*, Tally> tallies;  // of one group
int failed = 0;

void count(const Isa& isa, const Values& values) {
  Tally& tally = tallies[&isa];
  ++tally.cases;
  tally.values += std::ssize(values);
  for (const float x : values)
    tally.digest = (tally.digest ^ (x == x ? bits_of(x) : 0x7fc00000)) * 0x100000001b3;
}

void compare(const Isa& isa, const std::string& what, const Values& expected, const Values& got) {
  Tally& tally = tallies[&isa];
  if (got.size() != expected.size()) ++tally.wrong;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    if (bits_of(got[i]) == bits_of(expected[i])) continue;
    const bool both_nan = got[i] != got[i] && expected[i] != expected[i];
    ++(both_nan ? tally.other_nan : tally.wrong);
    if (!both_nan && tally.wrong <= 3)
      std::printf("  %s %s [%zu]: %08x, plain %08x\n", isa.name, what.c_str(), i, bits_of(got[i]),
                  bits_of(expected[i]));
  }
}

Pool& pool_of(int64_t workers) {
  static std::map<int64_t, std::unique_ptr<Pool>> pools;
  std::unique_ptr<Pool>& pool = pools[workers];
  if (!pool) pool = std::make_unique<Pool>(static_cast<int>(workers), false);
  return *pool;
}

}  // namespace

const std::vector<const Isa*>& runnable() {
  static const std::vector<const Isa*> isas = [] {
    std::vector<const Isa*> here;
    for (const Choice& choice : choices())
      if (can_run(choice)) here.insert(here.begin(), &choice.isa);
    return here;
  }();
  return isas;
}

void same(const std::string& what, const std::function<Values(const Isa&)>& run) {
  static unsigned turn = 0;
  Values expected;
  for (const Isa* isa : runnable()) {
    volatile char* shift = static_cast<char*>(__builtin_alloca(16 * (1 + turn++ % 4)));
    shift[0] = 0;
    Values got = run(*isa);
    count(*isa, got);
    isa == runnable()[0] ? expected = std::move(got)
                         : (compare(*isa, what, expected, got), expected);
  }
}

void report(const std::string& group) {
  for (const Isa* isa : runnable()) {
    const Tally& t = tallies[isa];
    std::printf("%s %s %s: %lld cases, %lld values, ", t.wrong ? "FAIL" : "PASS", isa->name,
                group.c_str(), static_cast<long long>(t.cases), static_cast<long long>(t.values));
    if (isa == runnable()[0])
      std::printf("digest %016llx", static_cast<unsigned long long>(t.digest));
    else
      std::printf("%lld differ", static_cast<long long>(t.wrong));
    if (t.other_nan) std::printf("; %lld other NaN", static_cast<long long>(t.other_nan));
    std::puts("");
    failed += t.wrong > 0;
  }
  std::fflush(stdout);
  tallies.clear();
}

int failures() { return failed; }

Fenced::Fenced(size_t bytes, size_t slack) {
  const size_t page = static_cast<size_t>(getpagesize());
  const size_t usable = (bytes + slack + page - 1) / page * page;
  length_ = usable + page;
  base_ = static_cast<char*>(
      mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(base_ + usable, page, PROT_NONE);
  data_ = base_ + usable - slack - bytes;
}

Fenced::~Fenced() { munmap(base_, length_); }

uint32_t Random::bits() {
  state_ = state_ * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state_ >> 32);
}

float Random::value() {
  const uint32_t b = bits();
  return float_of((b & 0x807fffff) | (115 + bits() % 16) << 23);
}

Values random_values(int64_t n, uint64_t seed) {
  Random random(seed);
  Values values(n);
  for (float& v : values) v = random.value();
  return values;
}

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

std::vector<char> weights(Type type, int64_t n, uint64_t seed, bool whole) {
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

std::vector<char> blocks(Type type, int64_t rows, int64_t columns, uint64_t seed) {
  const int64_t panels = (rows + kPanel - 1) / kPanel, groups = (columns + kGroup - 1) / kGroup;
  Random random(seed);
  std::vector<char> bytes(panels * groups * panel_bytes(type));
  for (char& byte : bytes) byte = static_cast<char>(random.bits() >> 24);
  const std::vector<char> scales = weights(Type::kF16, panels * groups * kPanel, seed + 1);
  for (int64_t i = 0; i < panels * groups; ++i)
    std::memcpy(bytes.data() + (i + 1) * panel_bytes(type) - 2 * kPanel,
                scales.data() + i * 2 * kPanel, 2 * kPanel);
  return bytes;
}

Held::Held(Type type, const std::vector<char>& bytes, int64_t rows, int64_t columns)
    : Fenced(bytes.size(), rows > 1), tensor{type, data(), rows, columns} {
  std::memcpy(data(), bytes.data(), bytes.size());
}

Held vector_of(int64_t n, uint64_t seed) {
  return Held(Type::kF32, weights(Type::kF32, n, seed), 1, n);
}

Held matrix_of(Type type, int64_t rows, int64_t columns, uint64_t seed) {
  return Held(
      type,
      is_blocks(type) ? blocks(type, rows, columns, seed) : weights(type, rows * columns, seed),
      rows, columns);
}

Record record_of(Op op, int64_t in, int64_t out, std::array<int64_t, 5> ints,
                 std::array<double, 2> floats) {
  Record record{op, {}, 0, {}, in, out, {}, {}};
  std::copy(ints.begin(), ints.end(), record.ints);
  std::copy(floats.begin(), floats.end(), record.floats);
  return record;
}

Values Single::operator()(const Isa& isa) const {
  std::vector<std::unique_ptr<Fenced>> memory;
  const auto floats = [&](int64_t n) {
    const size_t bytes = n * sizeof(float);
    memory.push_back(std::make_unique<Fenced>(bytes));
    std::memset(memory.back()->data(), 0xff, bytes);  // NaN
    return memory.back()->floats();
  };
  Call call{&record, {}, floats(rows * record.width_out), rows, nullptr, nullptr};
  for (size_t i = 0; i < inputs.size(); ++i) {
    float* to = floats(std::ssize(inputs[i]));
    std::copy(inputs[i].begin(), inputs[i].end(), to);
    call.inputs[i] = to;
  }
  const int32_t* at = index.data();
  const Batch batch{at, at, at, at, at, rows, 1, 1, rows};
  call.batch = &batch;
  const Memory need = isa.memory(record, batch, rows, workers);
  const auto whole = [](int64_t n) { return (n + 15) / 16 * 16; };  // 64-byte aligned
  Pool& pool = pool_of(workers);
  const auto wait = [](void* p, int worker) { static_cast<Pool*>(p)->barrier(worker); };
  std::vector<Worker> team;
  for (int64_t w = 0; w < workers; ++w)
    team.push_back({w, workers, floats(whole(need.scratch)), nullptr, wait, &pool, pool.tickets()});
  float* shared = floats(whole(need.shared));
  for (Worker& worker : team) worker.shared = shared;
  struct Job {
    Kernel kernel;
    const Call& call;
    const std::vector<Worker>& team;
  } job{isa.kernels[static_cast<int>(record.op)], call, team};
  pool.run(
      [](void* argument, int worker) {
        const Job& all = *static_cast<Job*>(argument);
        all.kernel(all.call, all.team[worker]);
      },
      &job);
  return {call.output, call.output + rows * record.width_out};
}

}  // namespace seriatim
