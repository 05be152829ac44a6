#include "isas.h"

#include <algorithm>
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace seriatim {
namespace {

struct Feature {
  const char* name;
  bool here;
};

struct Needs {
  const Isa& isa;
  Names features;
};

#if defined(__x86_64__)

#define SERIATIM_FEATURE(name) {name, __builtin_cpu_supports(name) != 0}

// As the processor and the system say: registers that the system does not save count as absent.
std::vector<Feature> known() {
  __builtin_cpu_init();
  return {SERIATIM_FEATURE("sse4.2"),   SERIATIM_FEATURE("avx"),       SERIATIM_FEATURE("f16c"),
          SERIATIM_FEATURE("fma"),      SERIATIM_FEATURE("avx2"),      SERIATIM_FEATURE("avxvnni"),
          SERIATIM_FEATURE("avx512f"),  SERIATIM_FEATURE("avx512bw"),  SERIATIM_FEATURE("avx512dq"),
          SERIATIM_FEATURE("avx512vl"), SERIATIM_FEATURE("avx512vnni")};
}

// As the flags in CMakeLists.txt.
std::vector<Needs> kernels() {
  const Names avx2{"f16c", "fma", "avx2"};
  const auto beyond = [](Names names, const Names& more) {
    names.insert(names.end(), more.begin(), more.end());
    return names;
  };
  const Names avx512 = beyond(avx2, {"avx512f", "avx512bw", "avx512dq", "avx512vl"});
  return {{kAvx512Vnni, beyond(avx512, {"avx512vnni"})},
          {kAvx512, avx512},
          {kAvxVnni, beyond(avx2, {"avxvnni"})},
          {kAvx2, avx2},
          {kPlain, {}}};
}

#elif defined(__aarch64__)

std::vector<Feature> known() {
#if defined(__linux__)
  return {{"asimddp", (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0}};
#else
  return {};
#endif
}

std::vector<Needs> kernels() { return {{kNeon, {"asimddp"}}, {kPlain, {}}}; }

#else

std::vector<Feature> known() { return {}; }
std::vector<Needs> kernels() { return {{kPlain, {}}}; }

#endif

}  // namespace

Names features() {
  Names names;
  for (const Feature& feature : known())
    if (feature.here) names.emplace_back(feature.name);
  return names;
}

std::vector<Choice> choices() {
  const Names here = features();
  std::vector<Choice> all;
  for (const Needs& needs : kernels()) {
    Names lacks;
    for (const std::string& name : needs.features)
      if (std::find(here.begin(), here.end(), name) == here.end()) lacks.push_back(name);
    all.push_back({needs.isa, lacks});
  }
  return all;
}

}  // namespace seriatim
