// From logits to an id: what engine/sampler_reference.py defines, to the bit, without looking at
// every id twice.
//
// Thresholds on the maxima of runs leave few candidates; what remains is exact: integer weights,
// and noise for those that could win. Everything that a caller gives is checked; a refusal is
// std::invalid_argument. A `Sampler` keeps its scratch memory: one caller at a time.
#pragma once
#include <cstdint>
#include <vector>

#include "sampler_scores.h"
#include "scan.h"

namespace seriatim {

class Sampler {
 public:
  explicit Sampler(const Scan& scan) : scan_(scan), scores_(scan) {}

  const Scan& scan() const { return scan_; }

  // The id drawn, or -1 if none is left.
  int64_t pick(Row row, Chain& chain, const Past& past, const Hidden& hidden, Key key);

  // The `count` highest, by falling value, equals by rising id.
  Ids likeliest(Row row, int64_t count);

 private:
  struct Race;
  using Filters = std::vector<Filter>;
  using Next = Filters::const_iterator;  // the next filter of those that act

  void choose_filters(const Chain& chain, Key key);
  double first_temperature(const Chain& chain) const;
  double reach_of(const Chain& chain, Next next) const;
  double find_least(const Chain& chain, Next next, double temperature);
  void gather(const Chain& chain, Next& next, double temperature);
  template <class Hold>
  void gather_some(const Chain& chain, Next next, double temperature, Hold hold);
  void gather_typical(const Chain& chain, Next next, double temperature);
  void gather_top_p(const Chain& chain, Next next, double temperature);
  void collect(double least);
  void scale(double top, double temperature);
  void weigh();
  uint64_t sum_above(uint64_t least) const;
  Moments moments() const;
  int64_t best() const;

  void apply(Filter filter, const Chain& chain);
  void rescale(const Chain& chain);
  void keep_top_k(int64_t k);
  void keep_typical(double share, Moments sums);
  void keep_heaviest(uint64_t goal);
  void keep_min_p(double share);
  int64_t likely_to_stay(uint64_t goal) const;
  void keep_unlikely(uint64_t goal);
  void hide_likely(const Chain& chain, double temperature);
  template <class Key, class Bucket>
  void keep_first(uint64_t goal, int64_t buckets, Key key, Bucket bucket);
  template <class Keep>
  void keep(Keep&& keep);

  int64_t win(Key key) const;
  int64_t win_all(double top, double temperature, Key key) const;

  const Scan& scan_;
  Scores scores_;
  Filters filters_;                       // those that act
  int64_t count_ = 0;                     // candidates; vectors only grow, so that none is cleared
  bool weighed_ = false;                  // whether weights_ are those of z_
  std::vector<int32_t> ids_;              // [candidate], rising
  std::vector<double> z_, far_;           // [candidate]: the value, then scaled; from typical
  std::vector<uint64_t> weights_, sums_;  // [candidate], [bucket]
  std::vector<int32_t> order_;            // places of candidates
};

}  // namespace seriatim
