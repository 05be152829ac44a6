// Every op but the matrix product and attention.
#pragma once
#include "functions.h"
#include "ops.h"
#include "simd.h"

namespace seriatim {
namespace {

constexpr int64_t kGrain = 256;  // f32 in the smallest share of flat work

// `f` on every sixteen values of the output.
template <class F>
SERIATIM_INLINE void pointwise(const Call& call, Worker worker, F&& f) {
  const Range mine = share(call.rows * call.record->width_out, kGrain, worker);
  sixteens(mine.end - mine.begin, [&](int64_t i, int64_t n) {
    const int64_t at = mine.begin + i;
    store_up_to(call.output + at, f(at, n), n);
  });
}

void add(const Call& call, Worker worker) {
  pointwise(call, worker, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    return load_up_to(call.inputs[0] + i, n) + load_up_to(call.inputs[1] + i, n);
  });
}

void scale(const Call& call, Worker worker) {
  pointwise(call, worker, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    return load_up_to(call.inputs[0] + i, n) * all(static_cast<float>(call.record->floats[0]));
  });
}

SERIATIM_INLINE f32x16 softcap(f32x16 x, float cap) { return all(cap) * tanh(x / all(cap)); }

void softcap(const Call& call, Worker worker) {
  pointwise(call, worker, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    return softcap(load_up_to(call.inputs[0] + i, n), static_cast<float>(call.record->floats[0]));
  });
}

void activate(const Call& call, Worker worker) {
  pointwise(call, worker, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    return activation(load_up_to(call.inputs[0] + i, n), call.record->ints[kActivation]);
  });
}

void gate(const Call& call, Worker worker) {
  pointwise(call, worker, [&](int64_t i, int64_t n) SERIATIM_INLINE_LAMBDA {
    const f32x16 x = load_up_to(call.inputs[0] + i, n);
    return activation(x, call.record->ints[kActivation]) * load_up_to(call.inputs[1] + i, n);
  });
}

template <class W>
SERIATIM_INLINE void expand(const W* from, float* to, int64_t n) {
  sixteens(n, [&](int64_t i, int64_t m)
                  SERIATIM_INLINE_LAMBDA { store_up_to(to + i, load_up_to(from + i, m), m); });
}

template <class W>
SERIATIM_INLINE void embed(const Call& call, Worker worker) {
  const Tensor& table = call.record->tensors[0];
  const bool by_id = call.record->ints[kEmbedSource] == kIds;
  const int32_t* index = by_id ? call.batch->ids : call.batch->position;
  const Range mine = share(call.rows, 1, worker);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    const W* row = static_cast<const W*>(table.data) + index[t] * table.columns;
    expand(row, call.output + t * table.columns, table.columns);
  }
}

// One of a group's 32 integers; `lane`: bytes to a row's place in a vector.
SERIATIM_INLINE int stored_integer(const uint8_t* tile, Type type, int64_t lane, int64_t k) {
  if (type == Type::kInt8) return tile[k / 4 * 64 + lane + k % 4];
  const uint8_t byte = tile[k / 8 * 64 + lane + k % 4];
  const int nibble = k % 8 < 4 ? byte & 15 : byte >> 4;
  if (type == Type::kInt4) return nibble;
  const int bits = tile[256 + k / 16 * 64 + lane + k % 4] >> (k % 16 / 4 * 2) & 3;
  return nibble | bits << 4;
}

// Row r of a matrix in blocks: lane r mod 16 of tile r / 16 mod 2 of its panel.
SERIATIM_INLINE void expand_row(const Tensor& table, int64_t row, float* to) {
  const Type type = table.type;
  const int64_t groups = groups_of(table.columns), at = row % kPanel;
  const uint8_t* group =
      static_cast<const uint8_t*>(table.data) + row / kPanel * groups * panel_bytes(type);
  for (int64_t k = 0; k < table.columns; ++k) {
    const uint8_t* here = group + k / kGroup * panel_bytes(type);
    const uint8_t *tile = here + at / kTileLanes * tile_bytes(type),
                  *end = here + panel_bytes(type);
    f16 scale;
    __builtin_memcpy(&scale, end - 2 * kPanel + 2 * at, sizeof scale);
    int q = stored_integer(tile, type, at % kTileLanes * 4, k % kGroup) - zero_point(type);
    if (type == Type::kInt6)
      q *= static_cast<int8_t>(here[2 * tile_bytes(type) + k % kGroup / 16 * kPanel + at]);
    to[k] = widen(scale) * static_cast<float>(q);
  }
}

void embed_blocks(const Call& call, Worker worker) {
  const Tensor& table = call.record->tensors[0];
  const bool by_id = call.record->ints[kEmbedSource] == kIds;
  const int32_t* index = by_id ? call.batch->ids : call.batch->position;
  const Range mine = share(call.rows, 1, worker);
  for (int64_t t = mine.begin; t < mine.end; ++t)
    expand_row(table, index[t], call.output + t * table.columns);
}

void embed(const Call& call, Worker worker) {
  switch (call.record->tensors[0].type) {
    case Type::kF32:
      return embed<float>(call, worker);
    case Type::kF16:
      return embed<f16>(call, worker);
    case Type::kBF16:
      return embed<bf16>(call, worker);
    default:
      return embed_blocks(call, worker);
  }
}

void rows(const Call& call, Worker worker) {
  const int64_t width = call.record->width_out;
  const Range mine = share(call.rows, 1, worker);
  for (int64_t r = mine.begin; r < mine.end; ++r)
    expand(call.inputs[0] + call.batch->rows[r] * width, call.output + r * width, width);
}

// Sum of f(i, n) over n values in runs of sixteen: lane = index mod 16, ascending, then the tree.
template <class F>
SERIATIM_INLINE float sum(int64_t n, F&& f) {
  f32x16 total = zero();
  sixteens(n, [&](int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA { total = f(total, i, m); });
  return reduce(total);
}

struct Norm {
  const float *weight, *bias;  // or none
  int64_t kind;
  float epsilon;
};

SERIATIM_INLINE Norm norm_of(const Tensor& weight, const Tensor& bias, int64_t kind, double eps) {
  return {static_cast<const float*>(weight.data), static_cast<const float*>(bias.data), kind,
          static_cast<float>(eps)};
}

// One head of one token. The mean square is of values already centred: two passes, no cancellation.
SERIATIM_INLINE void norm(const Norm& how, const float* x, float* y, int64_t n) {
  f32x16 mean = zero();
  if (how.kind == kLayerNorm)
    mean = all(sum(n, [&](f32x16 s, int64_t i, int64_t m)
                          SERIATIM_INLINE_LAMBDA { return s + load_up_to(x + i, m); }) /
               static_cast<float>(n));
  const auto centred = [&](int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA {
    const f32x16 d = load_up_to(x + i, m) - mean;
    return m == kLanes ? d : keep_first(d, m);
  };
  const float square = sum(n, [&](f32x16 s, int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA {
    const f32x16 d = centred(i, m);
    return fma(d, d, s);
  });
  const f32x16 factor = all(1.0f / __builtin_sqrtf(square / static_cast<float>(n) + how.epsilon));
  sixteens(n, [&](int64_t i, int64_t m) SERIATIM_INLINE_LAMBDA {
    f32x16 v = centred(i, m) * factor;
    if (how.weight) v = v * load_up_to(how.weight + i, m);
    if (how.bias) v = v + load_up_to(how.bias + i, m);
    store_up_to(y + i, v, m);
  });
}

void norm(const Call& call, Worker worker) {
  const Record& record = *call.record;
  const int64_t heads = record.ints[kNormHeads], channels = record.width_in / heads;
  const Norm how =
      norm_of(record.tensors[0], record.tensors[1], record.ints[kNormKind], record.floats[0]);
  const Range mine = share(call.rows * heads, 1, worker);
  for (int64_t i = mine.begin; i < mine.end; ++i)
    norm(how, call.inputs[0] + i * channels, call.output + i * channels, channels);
}

// position * frequency is rounded to f32 before its cosine is taken, as transformers does.
void rotary(const Call& call, Worker worker) {
  const int64_t pairs = call.record->width_out / 2;
  const float* frequency = static_cast<const float*>(call.record->tensors[0].data);
  const double factor = call.record->floats[0];
  const Range mine = share(call.rows, 1, worker);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    const float position = static_cast<float>(call.batch->position[t]);
    float* out = call.output + t * 2 * pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float angle = position * frequency[i];
      const Turn at = turn(angle);
      out[i] = static_cast<float>(at.cos * factor);
      out[pairs + i] = static_cast<float>(at.sin * factor);
    }
  }
}

// One head: pair (x[i * step], x[i * step + apart]) turns by angle i; channels beyond are kept.
SERIATIM_INLINE void rope(const float* x, const float* angles, float* y, int64_t pairs,
                          int64_t step, int64_t apart) {
  for (int64_t i = 0; i < pairs; ++i) {
    const float cos = angles[i], sin = angles[pairs + i];
    const float a = x[i * step], b = x[i * step + apart];
    y[i * step] = a * cos - b * sin;
    y[i * step + apart] = b * cos + a * sin;
  }
}

void rope(const Call& call, Worker worker) {
  const int64_t heads = call.record->ints[kRopeHeads], channels = call.record->width_in / heads;
  const int64_t turned = call.record->ints[kRopeTurned];
  const bool half = call.record->ints[kRopeLayout] == kHalf;
  const Range mine = share(call.rows * heads, 1, worker);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const float* x = call.inputs[0] + i * channels;
    float* y = call.output + i * channels;
    const float* angles = call.inputs[1] + i / heads * turned;
    half ? rope(x, angles, y, turned / 2, 1, turned / 2) : rope(x, angles, y, turned / 2, 2, 1);
    expand(x + turned, y + turned, channels - turned);
  }
}

struct Extent {
  float most;
  bool finite;
};

SERIATIM_INLINE Extent extent(const float* x, int64_t n) {
  f32x16 most = all(-__builtin_inff());
  Ints bad = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const f32x16 v = load(x + i);
    most = select(v > most, v, most);
    SERIATIM_UNROLL for (int p = 0; p < kParts; ++p) bad |=
        (Ints)(((Bits)v.part[p] & 0x7f800000) == 0x7f800000);
  }
  float lanes[2 * kLanes];
  int32_t flags[kWidth + kLanes] = {};
  store(lanes, most);
  __builtin_memcpy(flags, &bad, sizeof bad);
  int64_t count = kLanes, flagged = kWidth;
  for (; i < n; ++i) {
    lanes[count++] = x[i];
    uint32_t bits;
    __builtin_memcpy(&bits, x + i, sizeof bits);
    flags[flagged++] = (bits & 0x7f800000) == 0x7f800000;
  }
  Extent found{lanes[0], true};
  for (int64_t j = 0; j < count; ++j) found.most = lanes[j] > found.most ? lanes[j] : found.most;
  for (int64_t j = 0; j < flagged; ++j) found.finite &= flags[j] == 0;
  return found;
}

// Run by run, so that only the best one is searched for the place of its largest.
Survey survey(const float* x, int64_t n) {
  constexpr int64_t kRun = 1024;
  Survey found{-__builtin_inff(), 0, true};
  int64_t run = 0;
  for (int64_t i = 0; i < n; i += kRun) {
    const Extent here = extent(x + i, n - i < kRun ? n - i : kRun);
    found.finite &= here.finite;
    if (!(here.most > found.best)) continue;
    found.best = here.most;
    run = i;
  }
  while (run < n - 1 && x[run] != found.best) ++run;
  found.index = static_cast<int32_t>(run);
  return found;
}

}  // namespace
}  // namespace seriatim
