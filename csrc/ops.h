// The closed table of ops that a forward pass is written in, and what a kernel is given.
//
// Start here. A model is a list of `Record`s over numbered buffers (slots), made by
// kernels/record.py; `Plan` (plan.h) checks it once and runs it, record after record, in every
// worker. Each instruction set fills one table of kernels (`Isa`), all of them bitwise equal.
// A test checks codes and word lists against kernels/ops.py.
// Ops from kProduct on are made by kernels/fuse.py only, from the ones before, with the same bits.
//
// Axis letters: T tokens, R rows that need logits, S sequences, B blocks of a sequence, D width,
// N outputs, F inner width of an MLP, V vocabulary, H query heads, G key/value heads, C channels of
// one head, A rotated channels of one head. All values between ops are f32.
//
// This header is read by translation units with different instruction set flags: it must hold no
// function that the compiler could emit out of line.
#pragma once
#include <cstdint>

namespace seriatim {

enum class Op : int {
  kEmbed,      // table[V,D] -> [T,D]; source
  kLinear,     // x[T,D], weight[N,D], bias[N]? -> [T,N]
  kNorm,       // x[T,D], weight[D/heads]?, bias[D/heads]? -> [T,D]; kind, heads; eps
  kRotary,     // frequencies[A/2] -> [T,A], cos then sin; scale
  kRope,       // x[T,H*C], angles[T,A] -> [T,H*C]; heads, layout
  kAttention,  // query[T,H*C], key[T,G*C], value[T,G*C] -> [T,H*C]; layer .. window; scale, softcap
  kGate,       // gate[T,F], up[T,F] -> [T,F]; activation
  kActivate,   // x[T,F] -> [T,F]; activation
  kAdd,        // x[T,D], y[T,D] -> [T,D]
  kScale,      // x[T,D] -> [T,D]; factor
  kSoftcap,    // x[T,D] -> [T,D]; cap
  kRows,       // x[T,D] -> [R,D]
  kProduct,    // norm?, then up to three linears of one type side by side, then a finish
  kAttend,     // query, key, value[T,(H+2G)*C]: norms?, ropes?, attention
};
inline constexpr int kOps = 14;
inline constexpr const char* kOpNames[kOps] = {"embed",     "linear", "norm",     "rotary", "rope",
                                               "attention", "gate",   "activate", "add",    "scale",
                                               "softcap",   "rows",   "product",  "attend"};

// How many of each a record carries: input slots (the last `optional` of them may be left out),
// tensors, integers, floats.
struct Signature {
  int64_t inputs, optional, tensors, ints, floats;
};
inline constexpr Signature kSignatures[kOps] = {
    {0, 0, 1, 1, 0}, {1, 0, 2, 0, 0}, {1, 0, 2, 2, 1}, {0, 0, 1, 0, 1}, {2, 0, 0, 2, 0},
    {3, 0, 0, 5, 2}, {2, 0, 0, 1, 0}, {1, 0, 0, 1, 0}, {2, 0, 0, 0, 0}, {1, 0, 0, 0, 1},
    {1, 0, 0, 0, 1}, {1, 0, 0, 0, 0}, {2, 1, 8, 3, 1}, {2, 1, 4, 7, 4}};

enum Activation { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };
enum NormKind { kRms, kLayerNorm };
enum Layout { kHalf, kInterleaved };
enum Source { kIds, kPosition };
enum Finish { kAsIs, kAdded, kGated, kActivated };  // y; residual + y; act(y) * y2; act(y)
inline constexpr const char* kActivations[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2"};
inline constexpr const char* kNorms[] = {"rms", "layer"};
inline constexpr const char* kLayouts[] = {"half", "interleaved"};
inline constexpr const char* kSources[] = {"ids", "position"};
inline constexpr const char* kVisible[] = {"causal"};
inline constexpr const char* kFinishes[] = {"none", "add", "gate", "activate"};

// Where a record's integer and float attributes lie, in the order of kernels/ops.py.
enum EmbedInt { kEmbedSource };
enum NormInt { kNormKind, kNormHeads };
enum RopeInt { kRopeHeads, kRopeLayout, kRopeTurned };  // turned: the width of the angles
enum AttentionInt {
  kAttentionLayer,
  kAttentionHeads,
  kAttentionKvHeads,
  kAttentionVisible,
  kAttentionWindow
};
enum AttentionFloat { kAttentionScale, kAttentionSoftcap };
enum GateInt { kActivation };  // of kGate and kActivate
// kProduct: inputs x, residual?; tensors of the norm, then a weight and a bias for each linear.
enum ProductInt { kProductNorm, kProductFinish, kProductActivation };  // norm: -1 none
inline constexpr int kLinears = 3;  // that one product holds at most
enum ProductTensor { kProductNormWeight, kProductNormBias, kProductWeight };
// kAttend: inputs query-key-value, angles?; tensors of the query's norm and the key's. The first
// five integers and two floats are kAttention's.
enum AttendInt { kAttendNorm = kAttentionWindow + 1, kAttendLayout, kAttendTurned };  // -1 none
enum AttendTensor { kQueryNormWeight, kQueryNormBias, kKeyNormWeight, kKeyNormBias };
enum AttendFloat { kQueryNormEps = kAttentionSoftcap + 1, kKeyNormEps };

// The types of weights, and of keys and values (f32, bf16 and int8: with one f32 scale for each
// token and head).
enum class Type : int { kF32, kF16, kBF16, kInt8, kInt4, kInt6 };
inline constexpr int64_t kTypeBytes[] = {4, 2, 2, 1};

[[gnu::always_inline]] inline constexpr bool is_blocks(Type type) { return type >= Type::kInt8; }

// Blocks (kernels/formats.py): panels of 32 rows; in one, for each group of 32 columns, two tiles
// of 16 rows, then the 32 f16 scales.
inline constexpr int64_t kGroup = 32, kTileLanes = 16, kPanel = 32;
[[gnu::always_inline]] inline constexpr int64_t groups_of(int64_t columns) {
  return (columns + kGroup - 1) / kGroup;
}
[[gnu::always_inline]] inline constexpr int64_t tile_bytes(Type type) {
  return type == Type::kInt8 ? 512 : type == Type::kInt6 ? 384 : 256;
}
[[gnu::always_inline]] inline constexpr int64_t factor_bytes(Type type) {
  return type == Type::kInt6 ? 2 * kPanel : 0;
}
[[gnu::always_inline]] inline constexpr int64_t panel_bytes(Type type) {
  return 2 * tile_bytes(type) + factor_bytes(type) + 2 * kPanel;
}
[[gnu::always_inline]] inline constexpr int32_t zero_point(Type type) {
  return type == Type::kInt8 ? 128 : type == Type::kInt6 ? 32 : 8;
}

// A matrix lies where the caller has it (a mapped file), at any alignment: row-major, or in blocks
// (kernels/formats.py). Vectors (biases, norm weights, frequencies) are small: expanded to f32
// once, rows = 1.
struct Tensor {
  Type type;
  const void* data;  // [rows, columns]; nullptr: an optional input that is absent
  int64_t rows, columns;
};

// What does not change from step to step.
struct Record {
  Op op;
  int inputs[3], output;  // slots; -1: an optional one that is left out
  Tensor tensors[8];
  int64_t width_in, width_out;  // f32 in one row of the first input and of the output
  int64_t ints[8];
  double floats[4];
};

// Positions in one cache block, and keys in one attention chunk, aligned to position 0.
inline constexpr int64_t kBlock = 64;

// One step's work, checked. Rows of sequences that share a step are laid end to end.
struct Batch {
  const int32_t *ids, *position, *sequence;  // [T]
  const int32_t* block_table;                // [S,B], -1 unused
  const int32_t* rows;                       // [R]
  int64_t tokens, sequences, blocks, row_count;
};

// Keys then values of a layer, each [kv head][slot][channel], one layer after another.
struct Cache {
  Type type;
  char* const* blocks;     // 64-byte aligned, never moved
  const int64_t* offsets;  // bytes from a block's start to a layer's keys
};

// One record, with this step's pointers.
struct Call {
  const Record* record;
  const float* inputs[3];
  float* output;
  int64_t rows;  // T or R
  const Batch* batch;
  const Cache* cache;
};

// One of those that run a kernel together.
struct Worker {
  int64_t index, count;
  float* scratch;  // its own, 64-byte aligned, as long as `Isa::scratch` asked for
  float* shared;   // all workers', likewise
  void (*wait)(void* pool, int index);
  void* pool;
  int64_t* tickets;  // taken since the latest barrier

  // Returns when every worker has come here.
  __attribute__((always_inline)) void barrier() const {
    if (count > 1) wait(pool, static_cast<int>(index));
  }

  // The next piece of work, for workers that take pieces as they go.
  __attribute__((always_inline)) int64_t take() const {
    return __atomic_fetch_add(tickets, 1, __ATOMIC_RELAXED);
  }
};

using Kernel = void (*)(const Call&, Worker);

struct Memory {
  int64_t scratch, shared;  // floats that each worker needs, and all together
};

// What a run of logits looks like.
struct Survey {
  float best;
  int32_t index;  // the first that is best
  bool finite;
};

// One instruction set's kernels, by op code. A kernel returns when its worker has done its share:
// others read the output after a barrier.
struct Isa {
  const char* name;
  Kernel kernels[kOps];
  Memory (*memory)(const Record&, const Batch&, int64_t rows, int64_t workers);
  Survey (*survey)(const float* logits, int64_t n);
};

// Those that a build has: isas.h.
extern const Isa kAvx512Vnni, kAvx512, kAvxVnni, kAvx2, kNeon, kPlain;

}  // namespace seriatim
