// What a row of logits is to the filters: penalties, DRY and biases added, some ids hidden.
//
// Defined by engine/sampler_reference.py. Values that differ from the row's own are kept beside it,
// so that a row is never copied; the maxima of its runs let the sampler pass most of it over.
#pragma once
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "scan.h"

namespace seriatim {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr int64_t kMostIds = 1 << 23;  // so many weights sum below 2^63

// One row of logits: float32 as a model gives them, or float64 as a processor left them.
struct Row {
  const float* narrow;
  const double* wide;  // used if narrow is null; penalties and biases are in it
  int64_t size;

  double at(int64_t id) const { return narrow ? narrow[id] : wide[id]; }
};

struct Replaced {
  int64_t id;
  double value;
};

enum Filter : int { kTemperature, kTopK, kTypicalP, kTopP, kMinP, kXtc, kFilters };

using Ids = std::vector<int64_t>;

// How a request's ids are drawn: engine/sampling.py, `Sampling`. Checked once.
struct Chain {
  double repetition, presence, frequency;
  double dry_multiplier, dry_base;
  int64_t dry_allowed, dry_range;
  Ids breakers;
  std::vector<Replaced> biases;
  std::optional<Ids> allowed;
  Ids banned;
  double temperature, dynatemp_range, dynatemp_exponent;
  int64_t top_k;
  double typical_p, top_p, min_p, xtc_probability, xtc_threshold;
  std::vector<Filter> order;

  void check();  // and sort
  bool penalises() const { return presence != 0.0 || frequency != 0.0; }
  bool hides() const { return allowed || !banned.empty(); }
  bool plain() const {
    return repetition == 1.0 && !penalises() && !dry_multiplier && biases.empty();
  }
  // The first id that is looked at, of `count` of which `prompt` were given.
  int64_t first(int64_t prompt, int64_t count) const;
  // A bit for each of `size` ids: whether allowed and not banned.
  const std::vector<uint64_t>& words(int64_t size);

 private:
  std::vector<uint64_t> words_;
  int64_t sized_ = -1;
};

// Ids from `first` on, those before `prompt` given.
struct Past {
  Ids ids;
  int64_t first, prompt;
};

// A bit for each id, 32 in a word.
struct Mask {
  const uint32_t* words;
  int64_t count;
};

// What cannot come at this place alone.
struct Hidden {
  Ids ids;
  std::vector<Mask> masks;
};

class Scores {
 public:
  explicit Scores(const Scan& scan) : scan_(scan) {}

  void set(Row row);
  void set(Row row, Chain& chain, const Past& past, const Hidden& hidden);

  void hide(int64_t id);

  double top() const { return top_; }  // -infinity: no id is left
  int64_t runs() const { return static_cast<int64_t>(maxima_.size()); }
  double maximum(int64_t run) const { return maxima_[run]; }
  // Values of one run; how many.
  int64_t load(int64_t run, double* out) const;
  // The lowest id of the greatest value.
  int64_t best() const;
  // The k-th greatest maximum, which k values reach; -infinity if there are fewer runs.
  double kth_maximum(int64_t k);
  // Sum of the weights of all ids.
  uint64_t total(double temperature) const;
  // Of all ids; how many there are.
  int64_t moments(double temperature, Moments& sums) const;

 private:
  struct Mark {               // of an id
    int32_t fresh, repeated;  // how often it was generated; DRY's longest repetition
    bool seen;
  };

  void hide(Chain& chain, const Hidden& hidden);
  void mark(const Chain& chain, const Past& past);
  void mark_repeated(const Chain& chain, const Past& past);
  void replace(const Chain& chain);
  double replaced(const Chain& chain, int64_t id, const Mark& mark) const;
  void touch(int64_t id) { touched_[id / kRun] |= uint64_t{1} << id % kRun; }
  void find_maxima();

  const Scan& scan_;
  Row row_{};
  double top_ = -kInfinity;
  std::vector<uint64_t> words_;          // [run]: which ids may come; empty: all
  std::vector<uint64_t> touched_;        // [run]: which ids are replaced
  std::vector<Replaced> replaced_;       // by rising id
  std::vector<Mark> marks_;              // [id]: all zero between calls
  std::vector<double> maxima_, sorted_;  // [run]
  Ids back_;                             // ids, the last first
  std::vector<int32_t> alike_;           // [id back]: how many ids from there on equal the last
};

// log of the sum of exp of a row, from the exact sum of integer weights.
double log_sum(const Scan& scan, const float* x, int64_t n);

}  // namespace seriatim
