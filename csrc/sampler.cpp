#include "sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <numeric>

#include "mathematics.h"
#include "refuse.h"
#include "sampler_shares.h"
#include "threads.h"

namespace seriatim {
namespace {

constexpr double kReach = 26.2;  // noise spans [-3.2, 23]: a score further below cannot win

// At least the noise of a word whose distance to 2^32 has its highest bit at [i].
constexpr std::array<double, 33> kMostNoise = [] {
  std::array<double, 33> most{};
  for (int i = 0; i < 33; ++i) most[i] = 0.6931471805599454 * (33 - i) + 1e-9;
  return most;
}();
double most_noise(uint64_t word) {  // -log u >= 1 - u >= 2^(bit - 33)
  return kMostNoise[std::bit_width((uint64_t{1} << 32) - word) - 1];
}

// A little below x, so that no value is lost that scales to the same z.
double lowered(double x, double top, double temperature) {
  return x - ((top - x) * 0x1p-48 + temperature * 0x1p-1050);
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

// Between temperature - range and temperature + range, by the share of the greatest entropy.
double dynamic(const Chain& chain, Moments sums, int64_t count) {
  if (count == 1) return chain.temperature;
  const auto total = static_cast<double>(sums.total);
  const double entropy = log(total / static_cast<double>(kOne)) + mean_of(sums);
  const double share = entropy / log(static_cast<double>(count));
  const double low = chain.temperature - chain.dynatemp_range;
  const double high = chain.temperature + chain.dynatemp_range;
  if (!(share > 0)) return low;
  return low + (high - low) * exp(chain.dynatemp_exponent * log(share));
}

}  // namespace

// ---- candidates --------------------------------------------------------------------------------

// Those that act here: XTC's coin depends on the place.
void Sampler::choose_filters(const Chain& chain, Key key) {
  const auto acts = [&](Filter filter) {
    if (filter != kXtc) return true;
    uint64_t words[kRun];
    scan_.noise(0, {key.seed, key.position, key.sample, 1}, words);
    return (static_cast<double>(words[0]) + 0.5) / 0x1p32 < chain.xtc_probability;
  };
  filters_.clear();
  std::copy_if(chain.order.begin(), chain.order.end(), std::back_inserter(filters_), acts);
}

// Where the temperature comes first.
double Sampler::first_temperature(const Chain& chain) const {
  if (chain.dynatemp_range == 0.0) return chain.temperature;
  Moments sums{};
  const int64_t count = scores_.moments(1.0, sums);
  return dynamic(chain, sums, count);
}

// How far below the best z is at most, of ids that the filters look at or noise can let win.
double Sampler::reach_of(const Chain& chain, Next next) const {
  double unit = 1.0;
  double off = 0.0;  // how far below the best that may be which XTC leaves
  for (; next != filters_.end(); ++next) {
    if (*next == kTopK) continue;
    if (*next == kMinP) return off + unit * (1.0 - log(std::max(chain.min_p, 0x1p-60)));
    if (*next == kTypicalP || *next == kTopP) return off + unit * kWeighs;
    if (*next == kXtc) off += unit * kWeighs;
    if (*next != kTemperature) continue;
    if (chain.dynatemp_range > 0.0) return kInfinity;  // counts all that are left
    unit *= chain.temperature;
  }
  return off + unit * (kReach + 0.1);
}

// No value below matters.
double Sampler::find_least(const Chain& chain, Next next, double temperature) {
  constexpr double kLowest = std::numeric_limits<double>::lowest();
  const double top = scores_.top(), reach = reach_of(chain, next);
  const double least = std::max(top - reach * temperature, kLowest);
  if (*next != kTopK) return least;
  return std::max(least, lowered(scores_.kth_maximum(chain.top_k), top, temperature));
}

// Ids whose value is at least `least`.
void Sampler::collect(double least) {
  const int64_t runs = scores_.runs();
  if (runs * kRun > std::ssize(ids_)) {
    ids_.resize(runs * kRun), z_.resize(runs * kRun);
    far_.resize(runs * kRun), weights_.resize(runs * kRun);
  }
  count_ = 0, weighed_ = false;
  double values[kRun];
  for (int64_t run = 0; run < runs; ++run) {
    if (!(scores_.maximum(run) >= least)) continue;
    const int64_t count = scores_.load(run, values);
    for (int64_t i = 0; i < count; ++i) {
      ids_[count_] = static_cast<int32_t>(run * kRun + i), z_[count_] = values[i];
      count_ += values[i] >= least;
    }
  }
}

void Sampler::scale(double top, double temperature) {
  for (int64_t i = 0; i < count_; ++i) z_[i] = (z_[i] - top) / temperature;
  weighed_ = false;
}

void Sampler::weigh() {
  if (!weighed_) scan_.weigh(z_.data(), count_, weights_.data());
  weighed_ = true;
}

// Sum of the weights of candidates above `least`.
uint64_t Sampler::sum_above(uint64_t least) const {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count_; ++i) sum += weights_[i] > least ? weights_[i] : 0;
  return sum;
}

Moments Sampler::moments() const {
  Moments sums{};
  scan_.moments(z_.data(), count_, 0.0, 1.0, sums);
  return sums;
}

// The place of the greatest z, the first of equals.
int64_t Sampler::best() const {
  return std::max_element(z_.begin(), z_.begin() + count_) - z_.begin();
}

// Candidates for the filters from `next` on.
void Sampler::gather(const Chain& chain, Next& next, double temperature) {
  if (*next == kTopP) return gather_top_p(chain, next++, temperature);
  if (*next == kTypicalP) return gather_typical(chain, next++, temperature);
  collect(find_least(chain, next, temperature));
  scale(scores_.top(), temperature);
}

// Candidates that hold what a filter by sums of weights leaves of all. Usually the ids above the
// lowest sixteenth of the maxima do, a few in a hundred; otherwise all are looked at.
template <class Hold>
void Sampler::gather_some(const Chain& chain, Next next, double temperature, Hold hold) {
  const double top = scores_.top();
  const double guess = scores_.kth_maximum(std::max<int64_t>(1, scores_.runs() * 15 / 16));
  for (const double least : {guess, find_least(chain, next, temperature)}) {
    if (least == -kInfinity) continue;
    collect(least);
    scale(top, temperature);
    weigh();
    if (hold((least - top) / temperature)) return;
  }
}

void Sampler::gather_top_p(const Chain& chain, Next next, double temperature) {
  const uint64_t goal = share_of(chain.top_p, scores_.total(temperature));
  gather_some(chain, next, temperature,
              [&](double least) { return sum_above(weight(least)) >= goal; });
  keep_heaviest(goal);
}

// Ids that are no candidates are further from the typical than `least` is.
void Sampler::gather_typical(const Chain& chain, Next next, double temperature) {
  Moments sums{};
  scores_.moments(temperature, sums);
  const uint64_t goal = share_of(chain.typical_p, sums.total);
  gather_some(chain, next, temperature, [&](double least) {
    const double mean = mean_of(sums);
    uint64_t sum = 0;
    for (int64_t i = 0; i < count_; ++i)
      sum += std::fabs(z_[i] + mean) < -(least + mean) ? weights_[i] : 0;
    return sum >= goal;
  });
  keep_typical(chain.typical_p, sums);
}

Ids Sampler::likeliest(Row row, int64_t count) {
  require(count >= 0, "the count is negative");
  if (count == 0) return {};
  scores_.set(row);
  collect(scores_.kth_maximum(count));
  order_.resize(count_);
  std::iota(order_.begin(), order_.end(), 0);
  const auto end = order_.begin() + std::min(count, count_);
  std::partial_sort(order_.begin(), end, order_.end(), Falling{z_.data()});
  Ids ids;
  for (auto place = order_.begin(); place != end; ++place) ids.push_back(ids_[*place]);
  return ids;
}

// ---- filters -----------------------------------------------------------------------------------

void Sampler::apply(Filter filter, const Chain& chain) {
  if (filter == kTemperature) return rescale(chain);
  if (filter == kTopK) return keep_top_k(chain.top_k);
  weigh();
  if (filter == kTypicalP) return keep_typical(chain.typical_p, moments());
  if (filter == kTopP) return keep_heaviest(share_of(chain.top_p, sum_above(0)));
  if (filter == kMinP) return keep_min_p(chain.min_p);
  keep_unlikely(xtc_goal(chain, sum_above(0)));
}

// The temperature after other filters; at 0 the best alone is left.
void Sampler::rescale(const Chain& chain) {
  const bool fixed = chain.dynatemp_range == 0.0;
  const double temperature = fixed ? chain.temperature : dynamic(chain, moments(), count_);
  const int64_t first = best();
  if (temperature != 0.0) return scale(z_[first], temperature);
  ids_[0] = ids_[first], z_[0] = 0.0, count_ = 1, weighed_ = false;
}

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

// By rising key, then rising id, until the weights reach the goal: sums of buckets of keys find the
// one where they do, and only that is sorted. A weight of 0 is passed over.
template <class Key, class Bucket>
void Sampler::keep_first(uint64_t goal, int64_t buckets, Key key, Bucket bucket) {
  sums_.assign(buckets, 0);
  for (int64_t i = 0; i < count_; ++i)
    if (weights_[i]) sums_[bucket(key(i))] += weights_[i];
  int64_t met = -1;
  uint64_t reached = 0;
  while (reached < goal) reached += sums_[++met];
  reached -= sums_[met];
  order_.clear();
  for (int64_t i = 0; i < count_; ++i)
    if (weights_[i] && bucket(key(i)) == met) order_.push_back(static_cast<int32_t>(i));
  std::sort(order_.begin(), order_.end(),
            [&](int32_t a, int32_t b) { return key(a) < key(b) || (key(a) == key(b) && a < b); });
  auto next = order_.begin();
  while (reached < goal) reached += weights_[*next++];
  const int64_t last = *--next;
  const auto most = key(last);
  keep([&](int64_t i) { return weights_[i] && (key(i) < most || (key(i) == most && i <= last)); });
}

// By falling weight.
void Sampler::keep_heaviest(uint64_t goal) {
  keep_first(
      goal, kBuckets, [&](int64_t i) { return kOne - weights_[i]; },
      [](uint64_t lighter) { return kBuckets - 1 - bucket(kOne - lighter); });
}

// By rising distance of -z from its mean.
void Sampler::keep_typical(double share, Moments sums) {
  const double mean = mean_of(sums);
  for (int64_t i = 0; i < count_; ++i) far_[i] = std::fabs(z_[i] + mean);
  keep_first(
      share_of(share, sums.total), kFarBuckets, [&](int64_t i) { return far_[i]; }, far_bucket);
}

void Sampler::keep_min_p(double share) {
  const uint64_t most = *std::max_element(weights_.begin(), weights_.begin() + count_);
  const uint64_t least = share_of(share, most);
  keep([&](int64_t i) { return weights_[i] >= least; });
}

// Of those that reach the goal the least likely stays alone, the last of equals.
int64_t Sampler::likely_to_stay(uint64_t goal) const {
  int64_t last = -1;
  for (int64_t i = 0; i < count_; ++i)
    if (weights_[i] >= goal && (last < 0 || weights_[i] <= weights_[last])) last = i;
  return last;
}

void Sampler::keep_unlikely(uint64_t goal) {
  const int64_t last = likely_to_stay(goal);
  keep([&](int64_t i) { return weights_[i] < goal || i == last; });
}

// XTC alone: what it takes away is hidden in the row, and the others are never collected.
void Sampler::hide_likely(const Chain& chain, double temperature) {
  const double top = scores_.top();
  const uint64_t goal = xtc_goal(chain, scores_.total(temperature));
  const double least = (static_cast<double>(goal) - 0.5) / static_cast<double>(kOne);  // rounds up
  const double depth = 1e-6 - log(least);
  collect(std::max(top - depth * temperature, std::numeric_limits<double>::lowest()));
  scale(top, temperature);
  weigh();
  const int64_t last = likely_to_stay(goal);
  for (int64_t i = 0; i < count_; ++i)
    if (weights_[i] >= goal && i != last) scores_.hide(ids_[i]);
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

// Among all ids: a run whose best value and greatest noise do not suffice together is passed over.
int64_t Sampler::win_all(double top, double temperature, Key key) const {
  Race race{scan_, key};
  const double least = (scores_.top() - top) / temperature - kReach;
  double values[kRun];
  const auto enter = [&](int64_t run) {
    const double best = (scores_.maximum(run) - top) / temperature;
    if (!(best > least) || best + race.turn_to(run) < race.highest) return;
    const int64_t count = scores_.load(run, values);
    for (int64_t i = 0; i < count; ++i) race.enter(run * kRun + i, (values[i] - top) / temperature);
  };
  enter(scores_.best() / kRun);
  for (int64_t run = 0; run < scores_.runs(); ++run) enter(run);
  return race.winner;
}

int64_t Sampler::pick(Row row, Chain& chain, const Past& past, const Hidden& hidden, Key key) {
  const FloatMode mode;
  scores_.set(row, chain, past, hidden);
  if (!(scores_.top() > -kInfinity)) return -1;
  require(scores_.top() < kInfinity, "a logit is infinite");
  choose_filters(chain, key);
  Next next = filters_.begin();
  double temperature = 1.0;
  if (*next == kTemperature) temperature = first_temperature(chain), ++next;
  if (temperature == 0.0) return scores_.best();
  const double top = scores_.top();
  if (next == filters_.end()) return win_all(top, temperature, key);
  if (*next == kXtc && next + 1 == filters_.end()) {
    hide_likely(chain, temperature);
    return win_all(top, temperature, key);
  }
  gather(chain, next, temperature);
  for (; next != filters_.end(); ++next) apply(*next, chain);
  return win(key);
}

}  // namespace seriatim
