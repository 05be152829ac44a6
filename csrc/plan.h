// A plan: records over buffers, checked when they are added, run in one call per step.
//
// Holds no model code: which records, over which weights, is said by kernels/record.py. Everything
// that a kernel indexes with is checked here first; a refusal is std::invalid_argument, before any
// work. One step at a time: a second caller is refused, never mixed in.
#pragma once
#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "ops.h"
#include "threads.h"

namespace seriatim {

using Floats = std::shared_ptr<float[]>;  // 64-byte aligned

// [panel, group, byte] of a matrix in blocks.
std::vector<int64_t> blocks_shape(Type type, int64_t rows, int64_t columns);

// Keys and values that one attention layer keeps for each position.
struct CacheLayer {
  int64_t kv_heads, channels;
};

// A buffer that several results use in turn.
struct Slot {
  char axis;             // 'T' or 'R'
  int64_t width;         // f32 in a row, at most
  int64_t used = 0;      // by the latest record that writes it; 0: nothing yet
  int64_t capacity = 0;  // rows
  Floats data = {};
};

// One step's arrays: the plan's own copies, so that nobody changes them between check and use.
struct Step {
  std::vector<int32_t> ids, position, sequence, block_table, rows;
  int64_t sequences, blocks;  // of block_table
};

// A result keeps its memory alive; its values are valid until the next step.
struct Result {
  Floats data;  // [rows, width]
  int64_t rows, width;
};

class Plan {
 public:
  Plan(const Isa& isa, int threads, bool spin, Type kv, std::vector<CacheLayer> layers,
       std::vector<Slot> slots);

  int tensor(const void* data, Type type, const std::vector<int64_t>& shape);  // its number
  int matrix(const void* data, Type blocks, int64_t rows, int64_t columns);    // in blocks
  // `tensors` in the op's order, -1 where an optional one is absent.
  void add(int op, const std::vector<int>& inputs, const std::vector<int>& tensors, int output,
           const std::vector<int64_t>& ints, const std::vector<double>& floats);

  void resize(int64_t blocks);
  void copy(int64_t source, int64_t target);
  void poison(int64_t block);  // fills it with NaN
  // The first positions' bytes, where they lie in the block; zeros elsewhere.
  void read(int64_t block, int64_t positions, char* to);
  void write(int64_t block, const char* from);
  int64_t blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t block_bytes() const { return block_bytes_; }
  int64_t bytes() const;  // buffers, scratch and cache

  Result step(Step step);
  int trace(Step step);  // the first record whose result is not finite, or -1
  const std::vector<uint8_t>& finite() const { return finite_; }  // [R] of the latest step
  const std::vector<int32_t>& best() const { return best_; }      // [R] the likeliest id, likewise

 private:
  // Marks the plan as in use, for a step or a change.
  class Turn {
   public:
    explicit Turn(Plan& plan);
    ~Turn() { plan_.busy_ = false; }

   private:
    Plan& plan_;
  };
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };

  Tensor find_tensor(int number) const;
  const Slot& find_slot(int number) const;
  void check_shapes(const Record& record) const;
  void check_product(const Record& record) const;
  void check_attention(const Record& record) const;
  int64_t width_of(const Record& record, int input) const;  // 0: it is left out
  void check_axes(const Record& record) const;
  bool must_wait(const Record& record) const;
  void commit(const Record& record);
  char* find_block(int64_t block);

  void accept(Step step);
  void check_token(size_t token) const;
  void check_blocks(int64_t sequence, int64_t first, int64_t last) const;
  void reserve();
  void resolve();
  void run(bool tracing);
  void work(int64_t worker);
  void find_failure(size_t record);
  void survey(int64_t worker);
  void conclude();
  int64_t rows_of(const Slot& slot) const {
    return slot.axis == 'T' ? batch_.tokens : batch_.row_count;
  }

  const Isa& isa_;
  const Type kv_;
  std::vector<CacheLayer> layers_;
  std::vector<int64_t> offsets_;  // [layer]: bytes into a block
  int64_t block_bytes_ = 0;
  std::vector<Slot> slots_;
  std::vector<Tensor> tensors_;
  std::vector<Floats> vectors_;  // expanded
  std::vector<Record> records_;
  std::vector<bool> waits_;  // [record]: whether a barrier comes before it
  int64_t id_limit_ = INT32_MAX, position_limit_ = INT32_MAX;  // rows of the smallest table
  int64_t window_ = -1;  // keys that some layer sees; 0 all, -1 no attention
  Memory need_{16, 16};  // what memory there is

  std::vector<std::unique_ptr<char, Free>> memory_;
  std::vector<char*> blocks_;    // [block]
  std::vector<Floats> scratch_;  // [worker]
  Floats shared_;

  std::atomic<bool> busy_{false};
  Step step_;
  Batch batch_{};
  Cache cache_{};
  std::vector<Call> calls_;      // [record]
  std::vector<Survey> surveys_;  // [R, worker]
  std::vector<uint8_t> finite_;
  std::vector<int32_t> best_;
  bool tracing_ = false;
  int failed_ = -1;
  Pool pool_;  // last: its threads end first
};

}  // namespace seriatim
