// The sampler's part of `seriatim._native`: rows of logits are read where they lie.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "mathematics.h"
#include "refuse.h"
#include "sampler.h"

namespace nb = nanobind;

namespace seriatim {
namespace {

template <class T, int N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Numbers = nb::ndarray<nb::numpy, double, nb::ndim<1>>;

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

// Reads a list of ids where it lies, from `first` on.
Ids ids_from(nb::handle given, int64_t first) {
  const nb::object list =
      PyList_Check(given.ptr()) ? nb::borrow(given) : nb::steal(PySequence_List(given.ptr()));
  if (!list.is_valid()) throw nb::python_error();
  const int64_t count = PyList_Size(list.ptr());
  Ids ids(std::max<int64_t>(0, count - first));
  for (int64_t i = first; i < count; ++i) {
    ids[i - first] = PyLong_AsLongLong(PyList_GetItem(list.ptr(), i));
    if (ids[i - first] == -1 && PyErr_Occurred()) throw nb::python_error();
  }
  return ids;
}

void make_chain(Chain* self, double repetition, double presence, double frequency,
                std::tuple<double, double, int64_t, int64_t> dry, Ids breakers, const Ids& biased,
                const std::vector<double>& biases, std::optional<Ids> allowed, Ids banned,
                std::tuple<double, double, double> temperature, int64_t top_k,
                std::tuple<double, double, double> shares, std::tuple<double, double> xtc,
                const std::vector<int>& order) {
  require(biased.size() == biases.size(), "ids and biases are not as many");
  Chain chain{};
  chain.repetition = repetition, chain.presence = presence, chain.frequency = frequency;
  std::tie(chain.dry_multiplier, chain.dry_base, chain.dry_allowed, chain.dry_range) = dry;
  std::tie(chain.temperature, chain.dynatemp_range, chain.dynatemp_exponent) = temperature;
  std::tie(chain.typical_p, chain.top_p, chain.min_p) = shares;
  std::tie(chain.xtc_probability, chain.xtc_threshold) = xtc;
  chain.breakers = std::move(breakers), chain.top_k = top_k;
  chain.allowed = std::move(allowed), chain.banned = std::move(banned);
  for (size_t i = 0; i < biased.size(); ++i) chain.biases.push_back({biased[i], biases[i]});
  for (const int filter : order) chain.order.push_back(static_cast<Filter>(filter));
  chain.check();
  new (self) Chain(std::move(chain));
}

template <class T>
int64_t pick(Sampler& sampler, const Array<T, 1>& logits, Chain& chain, nb::handle ids,
             int64_t prompt, uint64_t seed, uint32_t sample, Ids forbidden,
             const std::vector<Array<uint32_t, 1>>& masks) {
  const Py_ssize_t position = PyObject_Size(ids.ptr());
  if (position < 0) throw nb::python_error();
  require(position < int64_t{1} << 32, "more than 2^32 ids");
  const int64_t first = chain.first(prompt, position);
  Past past{{}, first, prompt};
  if (first < position) past.ids = ids_from(ids, first);
  Hidden hidden{std::move(forbidden), {}};
  for (const auto& mask : masks)
    hidden.masks.push_back({mask.data(), static_cast<int64_t>(mask.shape(0))});
  return sampler.pick(row_of(logits), chain, past, hidden,
                      {seed, static_cast<uint32_t>(position), sample});
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
  nb::set_leak_warnings(false);  // a chain that a request keeps until the program ends is no leak
  nb::class_<Chain>(m, "Chain")
      .def("__init__", make_chain, nb::kw_only(), "repetition"_a, "presence"_a, "frequency"_a,
           "dry"_a, "breakers"_a, "biased"_a, "biases"_a, "allowed"_a.none(), "banned"_a,
           "temperature"_a, "top_k"_a, "shares"_a, "xtc"_a, "order"_a);
  const auto def_pick = [&](auto function) {
    bound.def("pick", function, "logits"_a.noconvert(), "chain"_a, "ids"_a, "prompt"_a, "seed"_a,
              "sample"_a, "forbidden"_a, "masks"_a);
  };
  def_pick(pick<float>);
  def_pick(pick<double>);
}

}  // namespace seriatim
