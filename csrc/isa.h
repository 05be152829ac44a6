// The body of each instruction set's translation unit: `SERIATIM_TABLE(kName, "name")` fills its
// table of kernels. Include only in isa_*.cpp, after setting SERIATIM_WIDTH.
#pragma once
#include "attention.h"
#include "matmul.h"
#include "ops.h"
#include "pointwise.h"

namespace seriatim {
namespace {

int64_t scratch(const Record& record) {
  switch (record.op) {
    case Op::kLinear:
      return linear_scratch(record.tensors[0].columns);
    case Op::kAttention:
      return attention_scratch(record);
    default:
      return 0;
  }
}

}  // namespace
}  // namespace seriatim

#define SERIATIM_TABLE(symbol, name)                                                             \
  namespace seriatim {                                                                           \
  const Isa symbol = {name,                                                                      \
                      {embed, linear, norm, rotary, rope, attention, gate, activate, add, scale, \
                       softcap, rows, store_keys},                                               \
                      scratch};                                                                  \
  }
