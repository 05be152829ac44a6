// The body of a translation unit for an instruction set whose products alone differ from those of
// another: `SERIATIM_PRODUCTS(kName, "name", kOther)` fills its table, all else from kOther's.
// Include only in isa_*.cpp, after setting SERIATIM_WIDTH (as kOther's) and SERIATIM_DOT.
#pragma once
#include "product.h"

// The table is there before any code runs: a unit's own instructions must not run at load.
#define SERIATIM_PRODUCTS(symbol, name, other)                                                \
  namespace seriatim {                                                                        \
  namespace {                                                                                 \
  void elsewhere(const Call& call, Worker worker) {                                           \
    other.kernels[static_cast<int>(call.record->op)](call, worker);                           \
  }                                                                                           \
  Memory memory(const Record& record, const Batch& batch, int64_t rows, int64_t workers) {    \
    const bool ours = record.op == Op::kLinear || record.op == Op::kProduct;                  \
    return ours ? product_memory(record, rows) : other.memory(record, batch, rows, workers);  \
  }                                                                                           \
  Survey survey_elsewhere(const float* logits, int64_t n) { return other.survey(logits, n); } \
  constexpr Isa table() {                                                                     \
    Isa isa{name, {}, memory, survey_elsewhere};                                              \
    for (Kernel& kernel : isa.kernels) kernel = elsewhere;                                    \
    isa.kernels[static_cast<int>(Op::kLinear)] = product;                                     \
    isa.kernels[static_cast<int>(Op::kProduct)] = product;                                    \
    return isa;                                                                               \
  }                                                                                           \
  }                                                                                           \
  constinit const Isa symbol = table();                                                       \
  }
