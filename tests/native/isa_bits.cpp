// Do all instruction sets give the same bits? Runs every kernel of every one that this processor
// has on the same inputs and compares with `plain`. Weights, inputs, outputs and scratch end where
// memory ends, weights lie at odd addresses, and the stack starts at any multiple of 16. Prints
// digests of plain's results: equal from every compiler, at every level of optimisation.
//
//   cmake -B build -DSERIATIM_MODULE=OFF -DCMAKE_EXE_LINKER_FLAGS=-static
//   cmake --build build --target isa_bits && build/isa_bits
//
// `isa_bits_emulated` has VNNI's instructions in C++, so that their kernels run with AVX2 and
// AVX-512 alone. Arguments are groups (ops, products, plans; none: all) and instruction sets that
// must be among those compared.
//
// `isa_bits avx512` fails where there is no AVX-512. Bochs 2.7 emulates it (corei7_skylake_x): boot
// Linux from a CD with isa_bits as /init of its initramfs and the options `console=ttyS0
// clearcpuid=323,321 -- avx512` (else Linux finds the sizes of XSAVES and XSAVEC wrong, and turns
// AVX off). The serial port gets the report, then "Attempted to kill init! exitcode=0x00000000".
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <string>
#include <vector>

#include "compare.h"

namespace seriatim {
namespace {

struct Group {
  const char* name;
  void (*check)();
};
constexpr Group kGroups[] = {
    {"ops", check_ops}, {"products", check_products}, {"plans", check_plans}};

bool contains(const std::vector<std::string>& words, const char* word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

int check(const std::vector<std::string>& asked) {
  int missing = 0;
  std::vector<std::string> known, groups;
  for (const Isa* isa : runnable()) {
    std::printf("runs: %s\n", isa->name);
    known.push_back(isa->name);
  }
  for (const Group& group : kGroups)
    if (contains(asked, group.name)) groups.push_back(group.name);
  for (const std::string& word : asked) {
    if (contains(known, word.c_str()) || contains(groups, word.c_str())) continue;
    std::printf("FAIL: no %s on this processor\n", word.c_str());
    ++missing;
  }
  for (const Group& group : kGroups)
    if (groups.empty() || contains(groups, group.name)) group.check();
  return missing + failures();
}

}  // namespace
}  // namespace seriatim

int main(int argc, char** argv) {
  const bool failed = seriatim::check({argv + 1, argv + argc}) > 0;
  std::printf("%s\n", failed ? "FAIL" : "PASS: all bits equal");
  return failed;
}
