// Attention over the paged cache: norm, turn and store keys, store values, attend.
//
// The law (contracts.md, 6 and 7): keys are read in the stored format, those of the same step too,
// in chunks of 64 aligned to position 0. A chunk's part of the softmax (largest score, sum, mix of
// values) is made from nothing and folded into the total in ascending order; chunks wholly outside
// the window are skipped. So a token's result depends on its own position and keys only. Which
// queries go through a chunk side by side, and which worker makes a chunk's part, is chosen for
// speed. Loops end at each token's own position: nothing beyond it has a part in its result, not
// even multiplied by zero.
#pragma once
#include "chunk.h"
#include "ops.h"
#include "pages.h"
#include "pointwise.h"
#include "simd.h"

namespace seriatim {
namespace {

constexpr int64_t kRows = 32;   // queries that go through a chunk together, about
constexpr int64_t kUnpack = 6;  // from so many on, what is not f32 is converted once for all
constexpr int64_t kWorth = 4;   // chunks of one token that take as long as a barrier, about

// ---- heads -------------------------------------------------------------------------------------

enum Role { kQuery, kKey, kValue };

// One head of one token, as the product left it.
SERIATIM_INLINE const float* head_of(const Call& call, const Shape& shape, Role role, int64_t token,
                                     int64_t head) {
  const int64_t heads = role == kQuery ? shape.heads : shape.kv_heads;
  if (call.record->op == Op::kAttention)
    return call.inputs[role] + (token * heads + head) * shape.channels;
  const int64_t before = role == kQuery ? 0 : role == kKey ? shape.heads : shape.heads + heads;
  const int64_t all = shape.heads + 2 * shape.kv_heads;
  return call.inputs[0] + (token * all + before + head) * shape.channels;
}

// A query or a key as attention takes it: normed, then turned. `spare` holds one head.
SERIATIM_INLINE void prepare_head(const Call& call, const Shape& shape, Role role, int64_t token,
                                  int64_t head, float* spare, float* to) {
  const Record& record = *call.record;
  const float* x = head_of(call, shape, role, token, head);
  const int64_t n = shape.channels;
  if (record.op == Op::kAttention) return expand(x, to, n);
  const int64_t turned = record.ints[kAttendTurned];
  if (record.ints[kAttendNorm] >= 0) {
    const Tensor* weights = record.tensors + (role == kQuery ? kQueryNormWeight : kKeyNormWeight);
    const double eps = record.floats[role == kQuery ? kQueryNormEps : kKeyNormEps];
    norm(norm_of(weights[0], weights[1], record.ints[kAttendNorm], eps), x, spare, n);
    x = spare;
  }
  if (turned) {
    const bool half = record.ints[kAttendLayout] == kHalf;
    const float* angles = call.inputs[1] + token * turned;
    half ? rope(x, angles, to, turned / 2, 1, turned / 2) : rope(x, angles, to, turned / 2, 2, 1);
  }
  expand(x + turned, to + turned, n - turned);
}

template <class KV>
SERIATIM_INLINE void store_head(const Call& call, const Shape& shape, int64_t token, int64_t head,
                                float* spare) {
  const int64_t position = call.batch->position[token], slot = position % kBlock;
  const Pages<KV> page =
      pages<KV>(call, shape, call.batch->sequence[token], position / kBlock, head);
  const int64_t n = shape.channels, at = slot * n;
  float* key = spare + shape.width;
  prepare_head(call, shape, kKey, token, head, spare, key);
  keep(key, page.keys + at, page.key_scales + slot, n);
  const float* value = head_of(call, shape, kValue, token, head);
  keep(value, page.values + at, page.value_scales + slot, n);
}

template <class KV>
SERIATIM_INLINE void store_heads(const Call& call, const Shape& shape, Worker worker) {
  const Range mine = share(call.rows * shape.kv_heads, 1, worker);
  for (int64_t i = mine.begin; i < mine.end; ++i)
    store_head<KV>(call, shape, i / shape.kv_heads, i % shape.kv_heads, worker.scratch);
}

// ---- items and workers -------------------------------------------------------------------------

// Some tokens of one sequence, one kv head, and the chunks that these tokens see.
struct Item {
  int64_t token, tokens, head, begin, end;
};

SERIATIM_INLINE int64_t most_tokens(const Shape& shape) {
  return shape.group < kRows ? kRows / shape.group : 1;
}

template <class F>
SERIATIM_INLINE void each_item(const Batch& batch, const Shape& shape, F&& f) {
  const int64_t most = most_tokens(shape);
  for (int64_t t = 0, n; t < batch.tokens; t += n) {
    n = 1;
    while (n < most && t + n < batch.tokens && batch.sequence[t + n] == batch.sequence[t]) ++n;
    const int64_t first = batch.position[t], last = batch.position[t + n - 1];
    const int64_t seen = shape.window && first >= shape.window ? first - shape.window + 1 : 0;
    for (int64_t head = 0; head < shape.kv_heads; ++head)
      f(Item{t, n, head, seen / kBlock, last / kBlock + 1});
  }
}

// A step's items, laid end to end; a unit is one token's chunk.
struct Work {
  int64_t units = 0, chunks = 0;  // in all; of the longest item
  bool single = true;             // no sequence has two tokens
  bool cut = false;               // items may be split among workers
};

SERIATIM_INLINE int64_t units_of(const Item& item) { return item.tokens * (item.end - item.begin); }

SERIATIM_INLINE int64_t owner_of(const Work& work, int64_t start, const Item& item,
                                 int64_t workers) {
  return (2 * start + units_of(item)) * workers / (2 * work.units);
}

// Whole items keep a worker's work in its caches; they are cut where that would leave others idle.
SERIATIM_INLINE Work work_of(const Batch& batch, const Shape& shape, int64_t workers) {
  Work work;
  for (int64_t t = 1; t < batch.tokens; ++t)
    work.single &= batch.sequence[t] != batch.sequence[t - 1];
  each_item(batch, shape, [&](const Item& item) {
    work.units += units_of(item);
    work.chunks = item.end - item.begin > work.chunks ? item.end - item.begin : work.chunks;
  });
  int64_t start = 0, owner = 0, share = 0, most = 0;
  each_item(batch, shape, [&](const Item& item) {
    const int64_t next = owner_of(work, start, item, workers);
    share = next == owner ? share + units_of(item) : units_of(item);
    most = share > most ? share : most;
    owner = next;
    start += units_of(item);
  });
  work.cut = most - work.units / workers >= kWorth;
  return work;
}

// The chunk of an item at which a worker begins, as if `start` units came before it.
SERIATIM_INLINE int64_t begin_of(const Work& work, int64_t start, const Item& item, int64_t worker,
                                 int64_t workers) {
  if (!work.cut) return owner_of(work, start, item, workers) < worker ? item.end : item.begin;
  const int64_t units = work.units * worker / workers - start;
  if (units <= 0) return item.begin;
  return units >= units_of(item) ? item.end : item.begin + units / item.tokens;
}

// ---- one item ----------------------------------------------------------------------------------

// Parts of one chunk's softmax, or of the total.
struct Parts {
  Part* parts;   // [row]
  float* mixes;  // [row, width]
};

SERIATIM_INLINE int64_t part_floats(const Shape& shape, int64_t rows) {
  return lines(2 * rows) + rows * shape.width;
}

SERIATIM_INLINE Parts parts_at(float* memory, int64_t rows) {
  return {reinterpret_cast<Part*>(memory), memory + lines(2 * rows)};
}

// A worker's scratch.
struct Desk {
  float *spare, *queries, *weights,
      *unpacked;  // two heads; [row, width], [row, kLine], [slot, width]
  Range* spans;   // [row]
  Scales* scales;
  Parts total, part;
};

constexpr int64_t kRangeFloats = sizeof(Range) / sizeof(float);
constexpr int64_t kScaleFloats = sizeof(Scales) / sizeof(float);

SERIATIM_INLINE int64_t desk_floats(const Shape& shape, int64_t rows) {
  return 2 * shape.width + rows * (shape.width + kLine) + kBlock * shape.width +
         lines(rows * kRangeFloats) + kScaleFloats + 2 * part_floats(shape, rows);
}

SERIATIM_INLINE Desk desk_at(float* memory, const Shape& shape, int64_t rows) {
  const auto take = [&](int64_t floats) { return (memory += floats) - floats; };
  Desk desk;
  desk.spare = take(2 * shape.width);
  desk.queries = take(rows * shape.width);
  desk.weights = take(rows * kLine);
  desk.unpacked = take(kBlock * shape.width);
  desk.spans = reinterpret_cast<Range*>(take(lines(rows * kRangeFloats)));
  desk.scales = reinterpret_cast<Scales*>(take(kScaleFloats));
  desk.total = parts_at(take(part_floats(shape, rows)), rows);
  desk.part = parts_at(take(part_floats(shape, rows)), rows);
  return desk;
}

SERIATIM_INLINE int64_t most_rows(const Batch& batch, const Shape& shape) {
  const int64_t most = most_tokens(shape);
  return (batch.tokens < most ? batch.tokens : most) * shape.group;
}

// A row is one query head of one token: [token, group].
SERIATIM_INLINE void load_queries(const Call& call, const Shape& shape, const Item& item,
                                  const Desk& desk) {
  float* to = desk.queries;
  for (int64_t t = 0; t < item.tokens; ++t)
    for (int64_t g = 0; g < shape.group; ++g, to += shape.width) {
      prepare_head(call, shape, kQuery, item.token + t, item.head * shape.group + g, desk.spare,
                   to);
      for (int64_t c = shape.channels; c < shape.width; ++c) to[c] = 0;
    }
}

SERIATIM_INLINE Range see(const Call& call, const Shape& shape, const Item& item, int64_t chunk,
                          const Desk& desk) {
  Range* span = desk.spans;
  for (int64_t t = 0; t < item.tokens; ++t)
    for (int64_t g = 0; g < shape.group; ++g)
      *span++ = seen(call.batch->position[item.token + t], chunk, shape.window);
  return {desk.spans->begin, span[-1].end};
}

// The parts of one chunk, for the rows that see something of it.
template <class KV>
void make_parts(const Call& call, const Shape& shape, const Item& item, int64_t chunk,
                const Desk& desk, const Parts& out) {
  constexpr bool kScaled = __is_same(KV, int8_t);
  const int64_t rows = item.tokens * shape.group, width = shape.width;
  const int64_t sequence = call.batch->sequence[item.token];
  const Pages<KV> page = pages<KV>(call, shape, sequence, chunk, item.head);
  const Range slots = see(call, shape, item, chunk, desk);
  const int64_t bytes = shape.channels * sizeof(KV);
  const Ahead values{reinterpret_cast<const char*>(page.values), bytes};
  Ahead keys{nullptr, bytes};
  if (chunk + 1 < item.end) {
    const Pages<KV> next = pages<KV>(call, shape, sequence, chunk + 1, item.head);
    keys.from = reinterpret_cast<const char*>(next.keys);
  }
  const bool direct = width == shape.channels && (__is_same(KV, float) || rows < kUnpack);
  if (direct) {
    all_scores(desk.queries, page.keys, width, desk.spans, rows, values, desk.weights);
  } else {
    unpack(page.keys, shape, slots, desk.unpacked);
    all_scores(desk.queries, desk.unpacked, width, desk.spans, rows, values, desk.weights);
  }
  if (kScaled) {
    const int64_t n = slots.end - slots.begin;
    expand(page.key_scales + slots.begin, desk.scales->keys + slots.begin, n);
    expand(page.value_scales + slots.begin, desk.scales->values + slots.begin, n);
  }
  all_weights<kScaled>(desk.weights, *desk.scales, shape.scale, shape.cap, desk.spans, rows,
                       out.parts);
  if (direct) {
    all_mixes(desk.weights, page.values, width, desk.spans, rows, keys, out.mixes);
  } else {
    unpack(page.values, shape, slots, desk.unpacked);
    all_mixes(desk.weights, desk.unpacked, width, desk.spans, rows, keys, out.mixes);
  }
}

// Folds a chunk's parts into the totals; a row's first one is its total.
SERIATIM_INLINE void take_parts(const Call& call, const Shape& shape, const Item& item,
                                int64_t chunk, const Parts& from, const Parts& total) {
  const int64_t width = shape.width;
  for (int64_t r = 0; r < item.tokens * shape.group; ++r) {
    const int64_t position = call.batch->position[item.token + r / shape.group];
    const Range slots = seen(position, chunk, shape.window);
    if (slots.begin >= slots.end) continue;
    const bool first = !shape.window || position < shape.window
                           ? chunk == 0
                           : chunk == (position - shape.window + 1) / kBlock;
    float* mix = total.mixes + r * width;
    if (first) {
      total.parts[r] = from.parts[r];
      expand(from.mixes + r * width, mix, width);
    } else {
      total.parts[r] = fold_part(total.parts[r], mix, from.parts[r], from.mixes + r * width, width);
    }
  }
}

SERIATIM_INLINE void finish(const Call& call, const Shape& shape, const Item& item,
                            const Parts& total) {
  for (int64_t r = 0; r < item.tokens * shape.group; ++r) {
    const int64_t token = item.token + r / shape.group;
    const int64_t head = item.head * shape.group + r % shape.group;
    float* y = call.output + (token * shape.heads + head) * shape.channels;
    const f32x16 sum = all(total.parts[r].sum);
    sixteens(shape.channels, [&](int64_t c, int64_t n) SERIATIM_INLINE_LAMBDA {
      store_up_to(y + c, load(total.mixes + r * shape.width + c) / sum, n);
    });
  }
}

// ---- the op ------------------------------------------------------------------------------------

// An item that one worker began and others went on with.
struct Cut {
  Item item;
  int64_t start, from;  // units before the item; the first chunk of the others
};

// Where the parts lie that workers made of an item begun by another.
SERIATIM_INLINE Parts shared_parts(const Shape& shape, const Work& work, const Item& item,
                                   int64_t chunk, int64_t owner, Worker worker, int64_t rows) {
  const int64_t at = owner * work.chunks + chunk - item.begin;
  return parts_at(worker.shared + at * part_floats(shape, rows), rows);
}

SERIATIM_INLINE int64_t beginner_of(const Work& work, int64_t start, const Item& item,
                                    int64_t worker, int64_t workers) {
  while (begin_of(work, start, item, worker, workers) > item.begin) --worker;
  return worker;
}

// Nothing waits between storing and attending where each sequence has one token: then the worker
// that attends to a token's own chunk has stored it.
template <class KV>
void attention(const Call& call, Worker worker) {
  const Batch& batch = *call.batch;
  const Shape shape = shape_of(*call.record);
  const Work work = work_of(batch, shape, worker.count);
  const int64_t most = most_rows(batch, shape);
  const Desk desk = desk_at(worker.scratch, shape, most);
  Cut cut{{}, 0, -1};
  int64_t next = 0;
  if (!work.single) {
    store_heads<KV>(call, shape, worker);
    worker.barrier();
  }
  each_item(batch, shape, [&](const Item& item) {
    const int64_t start = next;
    next += units_of(item);
    const int64_t begin = begin_of(work, start, item, worker.index, worker.count);
    const int64_t end = begin_of(work, start, item, worker.index + 1, worker.count);
    if (begin == end) return;
    if (work.single && end == item.end)
      store_head<KV>(call, shape, item.token, item.head, desk.spare);
    load_queries(call, shape, item, desk);
    if (begin == item.begin) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        make_parts<KV>(call, shape, item, chunk, desk, desk.part);
        take_parts(call, shape, item, chunk, desk.part, desk.total);
      }
      end == item.end ? finish(call, shape, item, desk.total) : void(cut = {item, start, end});
    } else {
      const int64_t owner = beginner_of(work, start, item, worker.index, worker.count);
      for (int64_t chunk = begin; chunk < end; ++chunk)
        make_parts<KV>(call, shape, item, chunk, desk,
                       shared_parts(shape, work, item, chunk, owner, worker, most));
    }
  });
  if (!work.cut) return;
  worker.barrier();
  if (cut.from < 0) return;
  for (int64_t chunk = cut.from; chunk < cut.item.end; ++chunk)
    take_parts(call, shape, cut.item, chunk,
               shared_parts(shape, work, cut.item, chunk, worker.index, worker, most), desk.total);
  finish(call, shape, cut.item, desk.total);
}

void attention(const Call& call, Worker worker) {
  switch (call.cache->type) {
    case Type::kF32:
      return attention<float>(call, worker);
    case Type::kBF16:
      return attention<bf16>(call, worker);
    default:
      return attention<int8_t>(call, worker);
  }
}

Memory attention_memory(const Record& record, const Batch& batch, int64_t workers) {
  const Shape shape = shape_of(record);
  const int64_t rows = most_rows(batch, shape);
  const Work work = work_of(batch, shape, workers);
  const int64_t shared = work.cut ? (workers - 1) * work.chunks * part_floats(shape, rows) : 0;
  return {desk_floats(shape, rows), shared};
}

}  // namespace
}  // namespace seriatim
