// The body of each instruction set's translation unit: `SERIATIM_TABLE(kName, "name")` fills its
// table of kernels. Include only in isa_*.cpp, after setting SERIATIM_WIDTH.
#pragma once
#include "attention.h"
#include "ops.h"
#include "pointwise.h"
#include "product.h"

namespace seriatim {
namespace {

// `rows`: T or R, whichever the record works on.
Memory memory(const Record& record, const Batch& batch, int64_t rows, int64_t workers) {
  switch (record.op) {
    case Op::kLinear:
    case Op::kProduct:
      return product_memory(record, rows);
    case Op::kAttention:
    case Op::kAttend:
      return attention_memory(record, batch, workers);
    default:
      return {};
  }
}

}  // namespace
}  // namespace seriatim

#define SERIATIM_TABLE(symbol, name)                                                              \
  namespace seriatim {                                                                            \
  const Isa symbol = {name,                                                                       \
                      {embed, product, norm, rotary, rope, attention, gate, activate, add, scale, \
                       softcap, rows, product, attention},                                        \
                      memory,                                                                     \
                      survey};                                                                    \
  }
