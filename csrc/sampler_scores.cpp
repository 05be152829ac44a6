#include "sampler_scores.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "mathematics.h"
#include "refuse.h"
#include "sampler_shares.h"
#include "threads.h"

namespace seriatim {
namespace {

constexpr double kDryPower = 88.0;  // exp of it is the greatest power of DRY's base

void check_id(int64_t id, int64_t size) {
  if (id < 0 || id >= size)
    refuse("id " + to_string(id) + " is not in a row of " + to_string(size) + " logits");
}

void check_ids(const Ids& ids, int64_t size) {
  for (const int64_t id : ids) check_id(id, size);
}

int64_t runs_of(int64_t size) { return (size + kRun - 1) / kRun; }

void clear_bit(std::vector<uint64_t>& words, int64_t id) {
  words[id / kRun] &= ~(uint64_t{1} << id % kRun);
}

bool within(double x, double low, double high) { return x >= low && x <= high; }

// alike[k]: how many of the ids from k on equal the first ones, by the Z algorithm: in the window
// [left, right) that is known to repeat the beginning, most are copied.
void find_alike(const Ids& ids, std::vector<int32_t>& alike) {
  const auto count = static_cast<int32_t>(ids.size());
  alike.assign(count, 0);
  for (int32_t k = 1, left = 0, right = 0; k < count; ++k) {
    int32_t n = k < right ? std::min(alike[k - left], right - k) : 0;
    while (k + n < count && ids[n] == ids[k + n]) ++n;
    alike[k] = n;
    if (k + n > right) left = k, right = k + n;
  }
}

}  // namespace

// ---- chains ------------------------------------------------------------------------------------

void Chain::check() {
  const auto finite = [](double x) { return std::isfinite(x); };
  require(finite(repetition) && repetition > 0, "repetition is not positive");
  require(finite(presence) && finite(frequency), "presence or frequency is not finite");
  require(within(dry_multiplier, 0, 1e6) && within(dry_base, 1, 1e6), "dry is out of range");
  require(dry_allowed >= 1 && dry_range >= 0, "dry is out of range");
  require(temperature >= 0 && finite(temperature), "temperature is negative or infinite");
  require(within(dynatemp_range, 0, temperature), "dynatemp_range is not in [0, temperature]");
  require(within(dynatemp_exponent, 0, 1e6), "dynatemp_exponent is not in [0, 1e6]");
  require(top_k >= 0, "top_k is negative");
  require(typical_p > 0 && typical_p <= 1, "typical_p is not in (0, 1]");
  require(top_p > 0 && top_p <= 1, "top_p is not in (0, 1]");
  require(within(min_p, 0, 1), "min_p is not in [0, 1]");
  require(within(xtc_probability, 0, 1) && within(xtc_threshold, 0, 1), "xtc is not in [0, 1]");
  int met = 0;
  for (const Filter f : order) {
    require(f >= 0 && f < kFilters && !(met >> f & 1), "a filter is unknown or doubled");
    met |= 1 << f;
  }
  require(met & 1 << kTemperature, "temperature is not among the filters");
  for (const Replaced& bias : biases) require(finite(bias.value), "a bias is not finite");
  std::sort(breakers.begin(), breakers.end());
  std::stable_sort(biases.begin(), biases.end(),
                   [](const Replaced& a, const Replaced& b) { return a.id < b.id; });
}

int64_t Chain::first(int64_t prompt, int64_t count) const {
  if (repetition != 1.0) return 0;
  const int64_t fresh = penalises() ? std::min(prompt, count) : count;
  if (dry_multiplier == 0.0) return fresh;
  return dry_range == 0 ? 0 : std::min(fresh, std::max<int64_t>(0, count - dry_range));
}

const std::vector<uint64_t>& Chain::words(int64_t size) {
  if (sized_ == size) return words_;
  check_ids(banned, size);
  if (allowed) check_ids(*allowed, size);
  words_.assign(runs_of(size), allowed ? 0 : ~uint64_t{0});
  if (allowed)
    for (const int64_t id : *allowed) words_[id / kRun] |= uint64_t{1} << id % kRun;
  for (const int64_t id : banned) clear_bit(words_, id);
  sized_ = size;
  return words_;
}

// ---- a row -------------------------------------------------------------------------------------

void Scores::set(Row row) {
  require(row.size > 0 && row.size <= kMostIds, "a row has no logits or more than 2^23");
  row_ = row;
  words_.clear(), replaced_.clear();
  find_maxima();
}

void Scores::set(Row row, Chain& chain, const Past& past, const Hidden& hidden) {
  require(row.size > 0 && row.size <= kMostIds, "a row has no logits or more than 2^23");
  row_ = row;
  words_.clear(), replaced_.clear();
  if (chain.hides() || !hidden.ids.empty() || !hidden.masks.empty()) hide(chain, hidden);
  if (row.narrow && !chain.plain()) {
    mark(chain, past);
    replace(chain);
  }
  find_maxima();
}

void Scores::hide(Chain& chain, const Hidden& hidden) {
  const int64_t runs = runs_of(row_.size), needed = (row_.size + 31) / 32;
  if (chain.hides())
    words_ = chain.words(row_.size);
  else
    words_.assign(runs, ~uint64_t{0});
  for (const Mask& mask : hidden.masks) {
    require(mask.count >= needed, "a mask has too few words");
    for (int64_t i = 0; i < needed / 2; ++i)
      words_[i] &= mask.words[2 * i] | uint64_t{mask.words[2 * i + 1]} << 32;
    if (needed % 2) words_[runs - 1] &= mask.words[needed - 1];
  }
  check_ids(hidden.ids, row_.size);
  for (const int64_t id : hidden.ids) clear_bit(words_, id);
}

void Scores::hide(int64_t id) {
  if (words_.empty()) words_.assign(runs(), ~uint64_t{0});
  clear_bit(words_, id);
  double values[kRun];
  maxima_[id / kRun] = *std::max_element(values, values + load(id / kRun, values));
  top_ = *std::max_element(maxima_.begin(), maxima_.end());
}

// Which ids penalties, DRY and biases touch, and what they must know of each.
void Scores::mark(const Chain& chain, const Past& past) {
  check_ids(past.ids, row_.size);
  for (const Replaced& bias : chain.biases) check_id(bias.id, row_.size);
  touched_.assign(runs_of(row_.size), 0);
  if (std::ssize(marks_) < row_.size) marks_.resize(row_.size);
  const auto count = std::ssize(past.ids);
  if (chain.repetition != 1.0)
    for (const int64_t id : past.ids) marks_[id].seen = true, touch(id);
  if (chain.penalises())
    for (int64_t i = std::max<int64_t>(0, past.prompt - past.first); i < count; ++i)
      ++marks_[past.ids[i]].fresh, touch(past.ids[i]);
  if (chain.dry_multiplier != 0.0) mark_repeated(chain, past);
  for (const Replaced& bias : chain.biases) touch(bias.id);
}

void Scores::mark_repeated(const Chain& chain, const Past& past) {
  const auto breaks = [&](int64_t id) {
    return std::binary_search(chain.breakers.begin(), chain.breakers.end(), id);
  };
  const int64_t all = std::ssize(past.ids);
  const int64_t count = chain.dry_range ? std::min(all, chain.dry_range) : all;
  back_.assign(past.ids.rbegin(), past.ids.rbegin() + count);
  const int64_t most = std::find_if(back_.begin(), back_.end(), breaks) - back_.begin();
  if (most < chain.dry_allowed) return;
  find_alike(back_, alike_);
  for (int64_t k = 1; k < count; ++k) {
    const int64_t length = std::min<int64_t>(alike_[k], most), id = back_[k - 1];
    if (length < chain.dry_allowed || length <= marks_[id].repeated || breaks(id)) continue;
    marks_[id].repeated = static_cast<int32_t>(length), touch(id);
  }
}

void Scores::replace(const Chain& chain) {
  auto bias = chain.biases.begin();
  for (int64_t run = 0; run < std::ssize(touched_); ++run)
    for (uint64_t left = touched_[run]; left; left &= left - 1) {
      const int64_t id = run * kRun + std::countr_zero(left);
      double value = replaced(chain, id, marks_[id]);
      for (; bias != chain.biases.end() && bias->id == id; ++bias) value += bias->value;
      replaced_.push_back({id, value});
      marks_[id] = {};
    }
}

double Scores::replaced(const Chain& chain, int64_t id, const Mark& mark) const {
  double x = row_.at(id);
  if (mark.seen) x = x > 0 ? x / chain.repetition : x * chain.repetition;
  if (mark.fresh) x -= chain.presence + chain.frequency * mark.fresh;
  if (mark.repeated) {
    const double power = static_cast<double>(mark.repeated - chain.dry_allowed);
    x -= chain.dry_multiplier * exp(std::min(power * log(chain.dry_base), kDryPower));
  }
  return x;
}

void Scores::find_maxima() {
  maxima_.resize(runs_of(row_.size));
  double values[kRun];
  if (!row_.narrow) {
    for (int64_t run = 0; run < runs(); ++run)
      maxima_[run] = *std::max_element(values, values + load(run, values));
  } else if (words_.empty() && replaced_.empty()) {
    scan_.maxima(row_.narrow, row_.size, nullptr, nullptr, maxima_.data());
  } else {
    scan_.maxima(row_.narrow, row_.size, words_.empty() ? nullptr : words_.data(),
                 replaced_.empty() ? nullptr : touched_.data(), maxima_.data());
    for (const Replaced& r : replaced_)
      if (words_.empty() || words_[r.id / kRun] >> r.id % kRun & 1)
        maxima_[r.id / kRun] = std::max(maxima_[r.id / kRun], r.value);
  }
  top_ = *std::max_element(maxima_.begin(), maxima_.end());
}

int64_t Scores::load(int64_t run, double* out) const {
  const int64_t begin = run * kRun, count = std::min(kRun, row_.size - begin);
  if (row_.narrow)
    scan_.widen(row_.narrow + begin, count, out);
  else
    std::copy_n(row_.wide + begin, count, out);
  if (!replaced_.empty()) {
    const auto before = [](const Replaced& r, int64_t id) { return r.id < id; };
    auto r = std::lower_bound(replaced_.begin(), replaced_.end(), begin, before);
    for (; r != replaced_.end() && r->id < begin + count; ++r) out[r->id - begin] = r->value;
  }
  if (!words_.empty() && ~words_[run])
    for (int64_t i = 0; i < count; ++i) out[i] = words_[run] >> i & 1 ? out[i] : -kInfinity;
  return count;
}

int64_t Scores::best() const {
  double values[kRun];
  const int64_t run = std::find(maxima_.begin(), maxima_.end(), top_) - maxima_.begin();
  return run * kRun + (std::max_element(values, values + load(run, values)) - values);
}

double Scores::kth_maximum(int64_t k) {
  if (k > runs()) return -kInfinity;
  sorted_ = maxima_;
  std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(), std::greater<>());
  return sorted_[k - 1];
}

uint64_t Scores::total(double temperature) const {
  double values[kRun];
  uint64_t sum = 0;
  for (int64_t run = 0; run < runs(); ++run) {
    if (!((maxima_[run] - top_) / temperature > -kWeighs)) continue;
    std::fill(values + load(run, values), values + kRun, -kInfinity);
    sum += scan_.total_scaled(values, kRun, top_, temperature);
  }
  return sum;
}

int64_t Scores::moments(double temperature, Moments& sums) const {
  double values[kRun];
  int64_t left = 0;
  for (int64_t run = 0; run < runs(); ++run) {
    if (!(maxima_[run] > -kInfinity)) continue;
    std::fill(values + load(run, values), values + kRun, -kInfinity);
    for (const double value : values) left += value > -kInfinity;
    if ((maxima_[run] - top_) / temperature > -kWeighs)
      scan_.moments(values, kRun, top_, temperature, sums);
  }
  return left;
}

double log_sum(const Scan& scan, const float* x, int64_t n) {
  require(n > 0 && n <= kMostIds, "a row has no logits or more than 2^23");
  const FloatMode mode;
  double top = -kInfinity, maxima[kRun];
  for (int64_t i = 0; i < n; i += kRun * kRun) {
    const int64_t count = std::min(n - i, kRun * kRun);
    scan.maxima(x + i, count, nullptr, nullptr, maxima);
    top = std::max(top, *std::max_element(maxima, maxima + (count + kRun - 1) / kRun));
  }
  const uint64_t total = scan.total(x, n, top);
  return top + log(static_cast<double>(total) / static_cast<double>(kOne));
}

}  // namespace seriatim
