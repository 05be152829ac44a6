// The sampler's part of `seriatim._native`: rows of logits are read where they lie.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "mathematics.h"
#include "refuse.h"
#include "sampler.h"

namespace nb = nanobind;

namespace seriatim {
namespace {

template <class T, int N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<nb::numpy, double, nb::ndim<1>>;
using Ids = std::vector<int64_t>;

std::vector<const Scan*> scans() {  // best first
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return {&kScanAvx512, &kScanAvx2, &kScanPlain};
  if (avx2) return {&kScanAvx2, &kScanPlain};
#endif
  return {&kScanPlain};
}

const Scan& find_scan(const std::optional<std::string>& isa) {
  for (const Scan* scan : scans())
    if (!isa || *isa == scan->name) return *scan;
  throw std::invalid_argument("isa " + *isa + " does not run on this processor");
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Scan* scan : scans()) names.emplace_back(scan->name);
  return names;
}

Row row_of(const Array<float, 1>& x) {
  return {x.data(), nullptr, static_cast<int64_t>(x.shape(0))};
}
Row row_of(const Array<double, 1>& x) {
  return {nullptr, x.data(), static_cast<int64_t>(x.shape(0))};
}

template <class T>
int64_t pick(Sampler& sampler, const Array<T, 1>& logits, const Ids& ids,
             const std::vector<double>& values, std::optional<Ids> allowed, double temperature,
             int64_t top_k, double top_p, double min_p, uint64_t seed, uint32_t position,
             uint32_t sample) {
  require(ids.size() == values.size(), "ids and values are not as many");
  std::vector<Replaced> replaced(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) replaced[i] = {ids[i], values[i]};
  return sampler.pick(row_of(logits), std::move(replaced), allowed ? &*allowed : nullptr,
                      {temperature, top_k, top_p, min_p}, {seed, position, sample});
}

Ids likeliest(Sampler& sampler, const Array<float, 1>& logits, int64_t count) {
  return sampler.likeliest(row_of(logits), count);
}

// Numbers as an array that owns them.
Numbers array_of(std::vector<double> values) {
  auto* kept = new std::vector<double>(std::move(values));
  const nb::capsule owner(kept,
                          [](void* p) noexcept { delete static_cast<std::vector<double>*>(p); });
  const size_t shape[] = {kept->size()};
  return Numbers(kept->data(), 1, shape, owner);
}

Numbers log_sums(const Sampler& sampler, const Array<float, 2>& logits) {
  std::vector<double> sums(logits.shape(0));
  const auto width = static_cast<int64_t>(logits.shape(1));
  {
    const nb::gil_scoped_release release;
    for (size_t i = 0; i < sums.size(); ++i)
      sums[i] = log_sum(sampler.scan(), logits.data() + i * width, width);
  }
  return array_of(std::move(sums));
}

// For tests: the maths of one instruction set, value by value.

Numbers mapped(const Array<double, 1>& x, double (*f)(double)) {
  std::vector<double> y(x.data(), x.data() + x.shape(0));
  for (double& value : y) value = f(value);
  return array_of(std::move(y));
}

Numbers exps(const Array<double, 1>& x) {
  return mapped(x, [](double v) {
    require(v <= 700.0, "exp takes 700 at most");
    return exp(v);
  });
}

Ids weights(const Sampler& sampler, const Array<double, 1>& z) {
  std::vector<uint64_t> w(z.shape(0));
  sampler.scan().weigh(z.data(), std::ssize(w), w.data());
  return {w.begin(), w.end()};
}

Ids words(const Sampler& sampler, int64_t run, uint64_t seed, uint32_t position, uint32_t sample) {
  uint64_t found[kRun];
  sampler.scan().noise(run, {seed, position, sample}, found);
  Ids ids(kRun);
  for (int64_t i = 0; i < kRun; ++i)
    ids[i] = static_cast<int64_t>(found[i % 4 * (kRun / 4) + i / 4]);
  return ids;
}

}  // namespace

void bind_sampler(nb::module_& m) {
  using namespace nanobind::literals;
  m.def("exp", exps, "x"_a.noconvert());
  m.def("log", [](const Array<double, 1>& x) { return mapped(x, log); }, "x"_a.noconvert());
  nb::class_<Sampler> bound(m, "Sampler");
  bound
      .def(
          "__init__",
          [](Sampler* self, const std::optional<std::string>& isa) {
            new (self) Sampler(find_scan(isa));
          },
          "isa"_a = nb::none())
      .def_static("isas", isas)
      .def("likeliest", likeliest, "logits"_a.noconvert(), "count"_a)
      .def("log_sum", log_sums, "logits"_a.noconvert())
      .def("weights", weights, "z"_a.noconvert())
      .def("words", words, "run"_a, "seed"_a, "position"_a, "sample"_a);
  const auto def_pick = [&](auto function) {
    bound.def("pick", function, "logits"_a.noconvert(), "ids"_a, "values"_a, "allowed"_a.none(),
              nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "seed"_a,
              "position"_a, "sample"_a);
  };
  def_pick(pick<float>);
  def_pick(pick<double>);
}

}  // namespace seriatim
