// Products of weights with inputs: `linear`, and `product`, which fuses what stands around it.
//
// In each of three parts nothing is rounded that the separate ops would not round:
//   inputs   normed if there is a norm, then as the weights' type wants them; few tokens' by every
//            worker for itself, many tokens' by all together
//   sums     up to three weights side by side; each worker takes a share of their rows
//   finish   + bias; + residual, or activation (of the first, times the second)
#pragma once
#include "blocks.h"
#include "functions.h"
#include "matmul.h"
#include "ops.h"
#include "pointwise.h"

namespace seriatim {
namespace {

struct Product {
  Norm norm;
  Tensor weights[kLinears], biases[kLinears];
  int64_t finish, activation;
  bool normed;

  int64_t columns() const { return weights[0].columns; }
  Type type() const { return weights[0].type; }
  bool blocks() const { return is_blocks(type()); }
  int linears() const {  // whose results lie side by side; the second of a gated one is up
    int count = 1;
    while (finish == kAsIs && count < kLinears && weights[count].data) ++count;
    return count;
  }
};

SERIATIM_INLINE Product product_of(const Record& record) {
  Product p{};
  if (record.op == Op::kLinear) {
    p.weights[0] = record.tensors[0];
    p.biases[0] = record.tensors[1];
  } else {
    p.finish = record.ints[kProductFinish];
    p.activation = record.ints[kProductActivation];
    p.normed = record.ints[kProductNorm] >= 0;
    p.norm = norm_of(record.tensors[kProductNormWeight], record.tensors[kProductNormBias],
                     record.ints[kProductNorm], record.floats[0]);
    for (int i = 0; i < kLinears; ++i) {
      p.weights[i] = record.tensors[kProductWeight + 2 * i];
      p.biases[i] = record.tensors[kProductWeight + 2 * i + 1];
    }
  }
  return p;
}

// Rows and tokens whose sums wait together for the finish: of blocks, what stays in L2.
struct Tiling {
  int64_t rows, tokens, grain;  // grain: of a worker's share of rows
};

SERIATIM_INLINE Tiling tiling(bool blocks) {
  if (blocks) return {128, 64 / kTokens * kTokens * 2, kTileLanes};
  return {kBlockRows, kBlockTokens, 12};  // 12: whole tiles of 2, 3 or 4
}

// f32 for the inputs of some tokens as the weights' type wants them.
SERIATIM_INLINE int64_t input_floats(const Product& p, int64_t tokens) {
  if (p.blocks()) return groups_of(p.columns()) * (input_bytes(p.type()) / 4) * tokens;
  if (tokens <= kFewTokens) return p.columns() * tokens;
  return padded_depth(p.columns()) * round_up(tokens, kBlockTokens);
}

SERIATIM_INLINE int64_t sum_floats(const Product& p) {
  const Tiling t = tiling(p.blocks());
  return t.rows * t.tokens;
}

Memory product_memory(const Record& record, int64_t tokens) {
  const Product p = product_of(record);
  const bool few = tokens <= kFewTokens;
  const int64_t inputs = lines(input_floats(p, tokens));
  const int64_t own =
      2 * sum_floats(p) + lines(p.columns()) + (p.blocks() ? 0 : kRowScratch) + (few ? inputs : 0);
  return {own, few ? 0 : inputs};
}

// ---- inputs ------------------------------------------------------------------------------------

struct Places {
  float *sums[2], *row, *rest;  // rest: for weights row by row, then for few tokens' inputs
};

SERIATIM_INLINE Places places(const Product& p, float* scratch) {
  float* row = scratch + 2 * sum_floats(p);
  return {{scratch, scratch + sum_floats(p)}, row, row + lines(p.columns())};
}

SERIATIM_INLINE void prepare_token(const Product& p, const Call& call, int64_t token, float* row,
                                   float* to) {
  const int64_t columns = p.columns();
  const float* x = call.inputs[0] + token * columns;
  if (p.normed) {
    norm(p.norm, x, row, columns);
    x = row;
  }
  if (p.blocks())
    round_inputs(x, columns, p.type(), token, call.rows, reinterpret_cast<uint8_t*>(to));
  else
    place_inputs(x, columns, p.type() == Type::kBF16, token, call.rows, to);
}

// Where the inputs lie when all workers may read them.
SERIATIM_INLINE const float* prepare_inputs(const Product& p, const Call& call, Worker worker,
                                            const Places& at) {
  if (call.rows <= kFewTokens) {
    const bool as_they_are = !p.normed && !p.blocks() && p.type() != Type::kBF16;
    if (as_they_are) return call.inputs[0];
    float* own = at.rest + (p.blocks() ? 0 : kRowScratch);
    for (int64_t t = 0; t < call.rows; ++t) prepare_token(p, call, t, at.row, own);
    return own;
  }
  const Range mine = share(call.rows, 1, worker);
  for (int64_t t = mine.begin; t < mine.end; ++t) prepare_token(p, call, t, at.row, worker.shared);
  worker.barrier();
  return worker.shared;
}

// ---- sums --------------------------------------------------------------------------------------

SERIATIM_INLINE void multiply(const Tensor& weight, Range rows, const float* inputs, int64_t token,
                              int64_t tokens, int64_t all, float* scratch, Sums out) {
  const bool few = all <= kFewTokens;
  if (is_blocks(weight.type)) {
    const int64_t bytes = token * groups_of(weight.columns) * input_bytes(weight.type);
    const uint8_t* x = reinterpret_cast<const uint8_t*>(inputs) + bytes;
    rows.end = round_up(rows.end, kTileLanes);
    switch (weight.type) {
      case Type::kInt8:
        return multiply_blocks<Type::kInt8>(weight, rows, x, tokens, out.at, out.stride);
      case Type::kInt6:
        return multiply_blocks<Type::kInt6>(weight, rows, x, tokens, out.at, out.stride);
      default:
        return multiply_blocks<Type::kInt4>(weight, rows, x, tokens, out.at, out.stride);
    }
  }
  const float* x = inputs + (few ? token * weight.columns : token * padded_depth(weight.columns));
  switch (weight.type) {
    case Type::kF32:
      return multiply_rows<float>(weight, rows, x, tokens, few, scratch, out);
    case Type::kF16:
      return multiply_rows<f16>(weight, rows, x, tokens, few, scratch, out);
    default:
      return multiply_rows<bf16>(weight, rows, x, tokens, few, scratch, out);
  }
}

// ---- finish ------------------------------------------------------------------------------------

SERIATIM_INLINE f32x16 biased(const float* sums, const Tensor& bias, int64_t row, int64_t n) {
  const f32x16 y = load_up_to(sums, n);
  return bias.data ? y + load_up_to(static_cast<const float*>(bias.data) + row, n) : y;
}

// One token's rows; `to` and `residual` point at the first of them.
SERIATIM_INLINE void finish_token(const Product& p, int linear, Range rows, const float* first,
                                  const float* second, const float* residual, float* to) {
  sixteens(rows.end - rows.begin, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    f32x16 y = biased(first + i, p.biases[linear], rows.begin + i, n);
    if (p.finish == kAdded) y = load_up_to(residual + i, n) + y;
    if (p.finish >= kGated) y = activation(y, p.activation);
    if (p.finish == kGated) y = y * biased(second + i, p.biases[1], rows.begin + i, n);
    store_up_to(to + i, y, n);
  });
}

// Rows of one weight (of both, when gated), all tokens. `column`: where its rows begin in a result.
SERIATIM_INLINE void linear_rows(const Product& p, int linear, Range rows, int64_t column,
                                 const Call& call, const float* inputs, const Places& at) {
  const Tiling tile = tiling(p.blocks());
  const int64_t width = call.record->width_out;
  for (int64_t row = rows.begin; row < rows.end; row += tile.rows)
    for (int64_t t = 0; t < call.rows; t += tile.tokens) {
      const Range here{row, least(row + tile.rows, rows.end)};
      const int64_t tokens = least(call.rows - t, tile.tokens);
      for (int i = 0; i <= (p.finish == kGated); ++i)
        multiply(p.weights[linear + i], here, inputs, t, tokens, call.rows, at.rest,
                 {at.sums[i], tile.rows});
      for (int64_t j = 0; j < tokens; ++j) {
        const int64_t to = (t + j) * width + column + row;
        const float* residual = p.finish == kAdded ? call.inputs[1] + to : nullptr;
        finish_token(p, linear, here, at.sums[0] + j * tile.rows, at.sums[1] + j * tile.rows,
                     residual, call.output + to);
      }
    }
}

// Rows of all weights, laid end to end in whole grains.
SERIATIM_INLINE void some_rows_of_all(const Product& p, Range rows, int64_t grain, const Call& call,
                                      const float* inputs, const Places& at) {
  int64_t begin = 0, column = 0;
  for (int i = 0; i < p.linears(); ++i) {
    const int64_t from = rows.begin > begin ? rows.begin - begin : 0;
    const int64_t to = least(rows.end - begin, p.weights[i].rows);
    if (from < to) linear_rows(p, i, {from, to}, column, call, inputs, at);
    begin += round_up(p.weights[i].rows, grain);
    column += p.weights[i].rows;
  }
}

// With many tokens workers take pieces as they go, so many for each: one may be slower than
// another. With few it is memory that is slow, and one long run of it for each is best: decoding
// 135M went from 300 to 233 tokens/s with pieces.
constexpr int64_t kPieces = 6;

void product(const Call& call, Worker worker) {
  const Product p = product_of(*call.record);
  const Places at = places(p, worker.scratch);
  const float* inputs = prepare_inputs(p, call, worker, at);
  const int64_t grain = tiling(p.blocks()).grain;
  int64_t total = 0;
  for (int i = 0; i < p.linears(); ++i) total += round_up(p.weights[i].rows, grain);
  const auto work = [&](Range rows) { some_rows_of_all(p, rows, grain, call, inputs, at); };
  if (worker.count == 1 || call.rows <= kFewTokens) return work(share(total, grain, worker));
  const int64_t pieces = worker.count * kPieces;
  const int64_t piece = (total / grain + pieces - 1) / pieces * grain;
  for (int64_t row = worker.take() * piece; row < total; row = worker.take() * piece)
    work({row, least(row + piece, total)});
}

}  // namespace
}  // namespace seriatim
