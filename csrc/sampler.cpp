#include "sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "mathematics.h"
#include "refuse.h"
#include "threads.h"

namespace seriatim {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kReach = 26.2;   // noise spans [-3.2, 23]: a score further below cannot win
constexpr double kWeighs = 28.5;  // a weight further below is 0
constexpr uint64_t kOne = uint64_t{1} << 40;  // the weight of the best
constexpr int64_t kMostIds = 1 << 23;         // so many weights sum below 2^63

// ceil(share * total), exactly: share = m 2^-s with 53 bits of m, total < 2^64.
uint64_t share_of(double share, uint64_t total) {
  if (share == 0.0) return 0;
  int exponent;
  const auto m = static_cast<uint64_t>(std::ldexp(std::frexp(share, &exponent), 53));
  const int s = 53 - exponent;
  if (s > 120) return 1;
  using Wide = unsigned __int128;
  return static_cast<uint64_t>((Wide{m} * total + ((Wide{1} << s) - 1)) >> s);
}

// Weights in order: 64 buckets for each power of two.
constexpr int kBucketBits = 6;
constexpr int64_t kBuckets = (40 << kBucketBits) + 1;
int64_t bucket(uint64_t weight) {
  const auto bits = std::bit_cast<int64_t>(static_cast<double>(weight));
  return (bits >> (52 - kBucketBits)) - (int64_t{1023} << kBucketBits);
}

// At least the noise of a word whose distance to 2^32 has its highest bit at [i].
constexpr std::array<double, 33> kMostNoise = [] {
  std::array<double, 33> most{};
  for (int i = 0; i < 33; ++i) most[i] = 0.6931471805599454 * (33 - i) + 1e-9;
  return most;
}();
double most_noise(uint64_t word) {  // -log u >= 1 - u >= 2^(bit - 33)
  return kMostNoise[std::bit_width((uint64_t{1} << 32) - word) - 1];
}

void check_id(int64_t id, int64_t size) {
  if (id < 0 || id >= size)
    refuse("id " + to_string(id) + " is not in a row of " + to_string(size) + " logits");
}

void check(const Row& row, const Filters& f) {
  require(row.size > 0 && row.size <= kMostIds, "a row has no logits or more than 2^23");
  require(f.temperature >= 0 && f.temperature < kInfinity, "temperature is negative or infinite");
  require(f.top_k >= 0, "top_k is negative");
  require(f.top_p > 0 && f.top_p <= 1, "top_p is not in (0, 1]");
  require(f.min_p >= 0 && f.min_p <= 1, "min_p is not in [0, 1]");
}

// What z is at least, of ids that the filters may keep and noise can let win.
double reach_of(const Filters& f) {
  if (f.temperature == 0) return 0.0;
  if (f.top_p < 1.0) return kWeighs;
  const double reach = kReach + 0.1;
  return f.min_p > 0.0 ? std::min(reach, 1.0 - log(std::max(f.min_p, 0x1p-60))) : reach;
}

// A little below x, so that no value is lost that scales to the same z.
double lowered(double x, double top, double temperature) {
  return x - ((top - x) * 0x1p-48 + temperature * 0x1p-1050);
}

// By rising id; of an id's several values the last.
std::vector<Replaced> ordered(std::vector<Replaced> given, int64_t size) {
  for (const Replaced& r : given) check_id(r.id, size);
  std::reverse(given.begin(), given.end());
  std::stable_sort(given.begin(), given.end(),
                   [](const Replaced& a, const Replaced& b) { return a.id < b.id; });
  given.erase(std::unique(given.begin(), given.end(),
                          [](const Replaced& a, const Replaced& b) { return a.id == b.id; }),
              given.end());
  return given;
}

// Orders places by falling value, then rising id: candidates are held by rising id.
template <class T>
struct Falling {
  const T* values;
  bool operator()(int32_t a, int32_t b) const {
    return values[a] > values[b] || (values[a] == values[b] && a < b);
  }
};
template <class T>
Falling(const T*) -> Falling<T>;

}  // namespace

// ---- candidates --------------------------------------------------------------------------------

// Values of one run, replacements included; how many. NaN, which nobody should bring, is hidden.
int64_t Sampler::load(Row row, int64_t run, double* out) const {
  const int64_t begin = run * kRun, count = std::min(kRun, row.size - begin);
  if (row.narrow)
    std::copy_n(row.narrow + begin, count, out);
  else
    std::copy_n(row.wide + begin, count, out);
  const auto before = [](const Replaced& r, int64_t id) { return r.id < id; };
  auto r = std::lower_bound(replaced_.begin(), replaced_.end(), begin, before);
  for (; r != replaced_.end() && r->id < begin + count; ++r) out[r->id - begin] = r->value;
  for (int64_t i = 0; i < count; ++i) out[i] = out[i] == out[i] ? out[i] : -kInfinity;
  return count;
}

// Fills maxima_; the greatest.
double Sampler::find_maxima(Row row) {
  const int64_t runs = (row.size + kRun - 1) / kRun;
  maxima_.resize(runs);
  double values[kRun];
  const auto find = [&](int64_t run) {
    const int64_t count = load(row, run, values);
    maxima_[run] = *std::max_element(values, values + count);
  };
  if (row.narrow) {
    scan_.maxima(row.narrow, row.size, maxima_.data());
    for (size_t i = 0; i < replaced_.size(); ++i)
      if (i == 0 || replaced_[i].id / kRun != replaced_[i - 1].id / kRun)
        find(replaced_[i].id / kRun);
  } else {
    for (int64_t run = 0; run < runs; ++run) find(run);
  }
  return *std::max_element(maxima_.begin(), maxima_.end());
}

// The k-th greatest maximum, which k values reach; -infinity if there are fewer runs.
double Sampler::kth_maximum(int64_t k) {
  if (k > std::ssize(maxima_)) return -kInfinity;
  sorted_ = maxima_;
  std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(), std::greater<>());
  return sorted_[k - 1];
}

// No value below can be that of the id drawn.
double Sampler::find_least(double top, const Filters& f) {
  constexpr double kLowest = std::numeric_limits<double>::lowest();
  const double least = std::max(top - reach_of(f) * f.temperature, kLowest);
  if (f.top_k == 0 || f.temperature == 0) return least;
  return std::max(least, lowered(kth_maximum(f.top_k), top, f.temperature));
}

void Sampler::reserve(int64_t count) {
  count_ = 0;
  if (count <= std::ssize(ids_)) return;
  ids_.resize(count), z_.resize(count), weights_.resize(count);
}

// Ids whose value is at least `least`.
void Sampler::collect(Row row, double least) {
  reserve((row.size + kRun - 1) / kRun * kRun);
  double values[kRun];
  for (int64_t run = 0; run < std::ssize(maxima_); ++run) {
    if (!(maxima_[run] >= least)) continue;
    const int64_t count = load(row, run, values);
    for (int64_t i = 0; i < count; ++i) {
      ids_[count_] = static_cast<int32_t>(run * kRun + i), z_[count_] = values[i];
      count_ += values[i] >= least;
    }
  }
}

// The greatest value.
double Sampler::collect_allowed(Row row, std::vector<int64_t>& allowed) {
  reserve(std::ssize(allowed));
  std::sort(allowed.begin(), allowed.end());
  allowed.erase(std::unique(allowed.begin(), allowed.end()), allowed.end());
  auto r = replaced_.begin();
  for (const int64_t id : allowed) {
    check_id(id, row.size);
    while (r != replaced_.end() && r->id < id) ++r;
    ids_[count_] = static_cast<int32_t>(id);
    z_[count_] = r != replaced_.end() && r->id == id ? r->value : row.at(id);
    count_ += z_[count_] > -kInfinity;
  }
  return count_ ? z_[best()] : -kInfinity;
}

void Sampler::scale(double top, double temperature) {
  for (int64_t i = 0; i < count_; ++i) z_[i] = (z_[i] - top) / temperature;
}

// The place of the greatest z, the first of equals.
int64_t Sampler::best() const {
  return std::max_element(z_.begin(), z_.begin() + count_) - z_.begin();
}

std::vector<int64_t> Sampler::likeliest(Row row, int64_t count) {
  check(row, {1.0, count, 1.0, 0.0});
  if (count == 0) return {};
  replaced_.clear();
  find_maxima(row);
  collect(row, kth_maximum(count));
  order_.resize(count_);
  std::iota(order_.begin(), order_.end(), 0);
  const auto end = order_.begin() + std::min(count, count_);
  std::partial_sort(order_.begin(), end, order_.end(), Falling{z_.data()});
  std::vector<int64_t> ids;
  for (auto place = order_.begin(); place != end; ++place) ids.push_back(ids_[*place]);
  return ids;
}

// ---- filters -----------------------------------------------------------------------------------

template <class Keep>
void Sampler::keep(Keep&& keep) {
  int64_t left = 0;
  for (int64_t i = 0; i < count_; ++i) {
    const bool stays = keep(i);
    ids_[left] = ids_[i], z_[left] = z_[i], weights_[left] = weights_[i];
    left += stays;
  }
  count_ = left;
}

// By falling z, then rising id.
void Sampler::keep_top_k(int64_t k) {
  if (k == 0 || k >= count_) return;
  order_.resize(count_);
  std::iota(order_.begin(), order_.end(), 0);
  std::nth_element(order_.begin(), order_.begin() + (k - 1), order_.end(), Falling{z_.data()});
  const int64_t last = order_[k - 1];
  const double least = z_[last];
  keep([&](int64_t i) { return z_[i] > least || (z_[i] == least && i <= last); });
}

// By falling weight, then rising id, until their sum reaches the goal: a histogram finds the bucket
// where it does, and only that is sorted.
void Sampler::keep_heaviest(uint64_t goal) {
  sums_.assign(kBuckets, 0);
  for (int64_t i = 0; i < count_; ++i)
    if (weights_[i]) sums_[bucket(weights_[i])] += weights_[i];
  int64_t met = kBuckets;
  uint64_t reached = 0;
  while (reached < goal) reached += sums_[--met];
  reached -= sums_[met];
  order_.clear();
  for (int64_t i = 0; i < count_; ++i)
    if (weights_[i] && bucket(weights_[i]) == met) order_.push_back(static_cast<int32_t>(i));
  std::sort(order_.begin(), order_.end(), Falling{weights_.data()});
  auto next = order_.begin();
  while (reached < goal) reached += weights_[*next++];
  const int64_t last = *--next;
  const uint64_t least = weights_[last];
  keep([&](int64_t i) { return weights_[i] > least || (weights_[i] == least && i <= last); });
}

// The best's weight is one, whatever was left out.
void Sampler::keep_min_p(double share) {
  const uint64_t least = share_of(share, kOne);
  keep([&](int64_t i) { return weights_[i] >= least; });
}

// Sum of the weights of candidates above `least`.
uint64_t Sampler::sum_above(uint64_t least) const {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count_; ++i) sum += weights_[i] > least ? weights_[i] : 0;
  return sum;
}

// Sum of the weights of all ids.
uint64_t Sampler::sum_all(Row row, double top, double temperature) const {
  double values[kRun];
  uint64_t sum = 0;
  for (int64_t run = 0; run < std::ssize(maxima_); ++run) {
    if (!((maxima_[run] - top) / temperature > -kWeighs)) continue;
    std::fill(std::begin(values) + load(row, run, values), std::end(values), -kInfinity);
    sum += scan_.total_scaled(values, kRun, top, temperature);
  }
  return sum;
}

// Candidates for top-p alone, and its goal. Usually those above the lowest sixteenth of the
// maxima reach it, a few ids in a hundred; otherwise all must be looked at.
uint64_t Sampler::collect_top_p(Row row, double top, const Filters& f) {
  const uint64_t goal = share_of(f.top_p, sum_all(row, top, f.temperature));
  const double least = kth_maximum(std::max<int64_t>(1, std::ssize(maxima_) * 15 / 16));
  if (least > -kInfinity) {
    collect(row, least);
    scale(top, f.temperature);
    scan_.weigh(z_.data(), count_, weights_.data());
    if (sum_above(weight((least - top) / f.temperature)) >= goal) return goal;
  }
  collect(row, find_least(top, f));
  scale(top, f.temperature);
  scan_.weigh(z_.data(), count_, weights_.data());
  return goal;
}

// z and weights of all candidates are there.
void Sampler::filter(const Filters& f, uint64_t goal) {
  if (f.top_p < 1.0) keep_heaviest(goal);
  if (f.min_p > 0.0) keep_min_p(f.min_p);
}

// ---- the id ------------------------------------------------------------------------------------

// Who has the highest z + noise so far, the lowest id of equals.
struct Sampler::Race {
  const Scan& scan;
  const Key key;
  int64_t run = -1, winner = -1;
  double highest = -kInfinity;
  uint64_t words[kRun] = {};

  // The greatest noise of a run is at most this.
  double turn_to(int64_t next) { return most_noise(scan.noise(run = next, key, words)); }
  void enter(int64_t id, double z) {
    const uint64_t word = words[id % 4 * (kRun / 4) + id % kRun / 4];
    if (z + most_noise(word) < highest) return;  // spares nearly all their logarithms
    const double score = z + gumbel(word);
    if (score > highest || (score == highest && id < winner)) highest = score, winner = id;
  }
};

// Among the candidates; begins with the best z, so that the bound is high from the start.
int64_t Sampler::win(Key key) const {
  Race race{scan_, key};
  const int64_t first = best();
  race.turn_to(ids_[first] / kRun);
  race.enter(ids_[first], z_[first]);
  for (int64_t i = 0; i < count_; ++i) {
    if (ids_[i] / kRun != race.run) race.turn_to(ids_[i] / kRun);
    race.enter(ids_[i], z_[i]);
  }
  return race.winner;
}

// Among all ids: a run whose best logit and greatest noise do not suffice together is passed over.
int64_t Sampler::win_all(Row row, double top, double temperature, Key key) const {
  Race race{scan_, key};
  double values[kRun];
  const auto enter = [&](int64_t run) {
    const double best = (maxima_[run] - top) / temperature;
    if (!(best > -kReach) || best + race.turn_to(run) < race.highest) return;
    const int64_t count = load(row, run, values);
    for (int64_t i = 0; i < count; ++i) race.enter(run * kRun + i, (values[i] - top) / temperature);
  };
  enter(std::find(maxima_.begin(), maxima_.end(), top) - maxima_.begin());
  for (int64_t run = 0; run < std::ssize(maxima_); ++run) enter(run);
  return race.winner;
}

int64_t Sampler::pick(Row row, std::vector<Replaced> replaced, std::vector<int64_t>* allowed,
                      const Filters& f, Key key) {
  check(row, f);
  const FloatMode mode;
  replaced_ = ordered(std::move(replaced), row.size);
  const double top = allowed ? collect_allowed(row, *allowed) : find_maxima(row);
  if (!(top > -kInfinity)) return -1;
  require(top < kInfinity, "a logit is infinite");
  const bool weighed = f.top_p < 1.0 || f.min_p > 0.0;
  if (!allowed) {
    if (f.temperature > 0 && !weighed && f.top_k == 0) return win_all(row, top, f.temperature, key);
    if (f.temperature > 0 && f.top_p < 1.0 && f.top_k == 0) {
      filter(f, collect_top_p(row, top, f));
      return win(key);
    }
    collect(row, find_least(top, f));
  }
  if (f.temperature == 0) return ids_[best()];
  scale(top, f.temperature);
  keep_top_k(f.top_k);
  if (weighed) {
    scan_.weigh(z_.data(), count_, weights_.data());
    filter(f, share_of(f.top_p, sum_above(0)));
  }
  return win(key);
}

double log_sum(const Scan& scan, const float* x, int64_t n) {
  require(n > 0 && n <= kMostIds, "a row has no logits or more than 2^23");
  const FloatMode mode;
  double top = -kInfinity, maxima[kRun];
  for (int64_t i = 0; i < n; i += kRun * kRun) {
    const int64_t count = std::min(n - i, kRun * kRun);
    scan.maxima(x + i, count, maxima);
    top = std::max(top, *std::max_element(maxima, maxima + (count + kRun - 1) / kRun));
  }
  const uint64_t total = scan.total(x, n, top);
  return top + log(static_cast<double>(total) / static_cast<double>(kOne));
}

}  // namespace seriatim
