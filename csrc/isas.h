// Which instruction sets this build has kernels for, and what this processor lacks for each.
#pragma once
#include <string>
#include <vector>

#include "ops.h"

namespace seriatim {

using Names = std::vector<std::string>;

struct Choice {
  const Isa& isa;
  Names lacks;  // features of the processor; none: it runs here
};

std::vector<Choice> choices();  // best first; the last, plain, lacks nothing
Names features();               // what this processor has, of the features that kernels may use

}  // namespace seriatim
