// The body of each instruction set's translation unit: `SERIATIM_TABLE(kName, "name")` fills its
// table of kernels. Include only in isa_*.cpp, after setting SERIATIM_WIDTH.
#pragma once
#include "attention.h"
#include "matmul.h"
#include "ops.h"
#include "pointwise.h"

namespace seriatim {
namespace {

Memory memory(const Record& record, const Batch& batch, int64_t workers) {
  switch (record.op) {
    case Op::kLinear:
      return {linear_scratch(record.tensors[0].columns), 0};
    case Op::kAttention:
    case Op::kAttend:
      return attention_memory(record, batch, workers);
    default:
      return {};
  }
}

}  // namespace
}  // namespace seriatim

#define SERIATIM_TABLE(symbol, name)                                                             \
  namespace seriatim {                                                                           \
  const Isa symbol = {name,                                                                      \
                      {embed, linear, norm, rotary, rope, attention, gate, activate, add, scale, \
                       softcap, rows, nullptr, attention},                                       \
                      memory,                                                                    \
                      survey};                                                                   \
  }
