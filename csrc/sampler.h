// From logits to an id: what engine/sampler_reference.py defines, to the bit, without looking at
// every id twice.
//
// Thresholds on the maxima of runs leave few candidates; what remains is exact: integer weights,
// and noise for those that could win. Everything that a caller gives is checked; a refusal is
// std::invalid_argument. A `Sampler` keeps its scratch memory: one caller at a time.
#pragma once
#include <cstdint>
#include <vector>

#include "scan.h"

namespace seriatim {

// One row of logits: float32 as a model gives them, or float64 as a processor left them.
struct Row {
  const float* narrow;
  const double* wide;  // used if narrow is null
  int64_t size;

  double at(int64_t id) const { return narrow ? narrow[id] : wide[id]; }
};

// Another value for an id: after penalties and biases, or -infinity for what cannot come.
struct Replaced {
  int64_t id;
  double value;
};

struct Filters {
  double temperature;
  int64_t top_k;
  double top_p, min_p;
};

class Sampler {
 public:
  explicit Sampler(const Scan& scan) : scan_(scan) {}

  const Scan& scan() const { return scan_; }

  // The id drawn, or -1 if none is left.
  //
  // replaced: of an id's several values the last counts. allowed: null, or the only ids that may
  // come.
  int64_t pick(Row row, std::vector<Replaced> replaced, std::vector<int64_t>* allowed,
               const Filters& filters, Key key);

  // The `count` highest, by falling value, equals by rising id.
  std::vector<int64_t> likeliest(Row row, int64_t count);

 private:
  struct Race;

  double find_maxima(Row row);
  int64_t load(Row row, int64_t run, double* out) const;
  double kth_maximum(int64_t k);
  double find_least(double top, const Filters& filters);
  void collect(Row row, double least);
  double collect_allowed(Row row, std::vector<int64_t>& allowed);
  void reserve(int64_t count);
  int64_t best() const;
  void scale(double top, double temperature);
  uint64_t sum_above(uint64_t least) const;
  uint64_t sum_all(Row row, double top, double temperature) const;
  uint64_t collect_top_p(Row row, double top, const Filters& filters);
  void filter(const Filters& filters, uint64_t goal);
  void keep_top_k(int64_t k);
  void keep_heaviest(uint64_t goal);
  void keep_min_p(double share);
  template <class Keep>
  void keep(Keep&& keep);
  int64_t win(Key key) const;
  int64_t win_all(Row row, double top, double temperature, Key key) const;

  const Scan& scan_;
  std::vector<Replaced> replaced_;        // by rising id
  std::vector<double> maxima_, sorted_;   // [run]
  int64_t count_ = 0;                     // candidates; vectors only grow, so that none is cleared
  std::vector<int32_t> ids_;              // [candidate], rising
  std::vector<double> z_;                 // [candidate]: the value, then scaled
  std::vector<uint64_t> weights_, sums_;  // [candidate], [bucket]
  std::vector<int32_t> order_;            // places of candidates
};

// log of the sum of exp of a row, from the exact sum of integer weights.
double log_sum(const Scan& scan, const float* x, int64_t n);

}  // namespace seriatim
