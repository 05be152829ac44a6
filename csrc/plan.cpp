#include "plan.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "refuse.h"

namespace seriatim {
namespace {

Floats allocate(int64_t floats) {
  constexpr std::align_val_t kLine{64};
  void* memory = ::operator new(static_cast<size_t>(floats) * sizeof(float), kLine);
  return Floats(static_cast<float*>(memory), [](float* p) { ::operator delete(p, kLine); });
}

// Of one head's key or value; an int8 one has an f32 scale.
int64_t position_bytes(Type kv, int64_t channels) {
  const int64_t scale = kv == Type::kInt8 ? sizeof(float) : 0;
  return channels * kTypeBytes[static_cast<int>(kv)] + scale;
}

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7f800000) == 0x7f800000;
  }
  return !bad;
}

}  // namespace

std::vector<int64_t> blocks_shape(Type type, int64_t rows, int64_t columns) {
  return {(rows + kPanel - 1) / kPanel, groups_of(columns), panel_bytes(type)};
}

Plan::Turn::Turn(Plan& plan) : plan_(plan) {
  if (plan_.busy_.exchange(true)) throw std::runtime_error("a step of this plan is running");
}

// ---- making a plan -----------------------------------------------------------------------------

Plan::Plan(const Isa& isa, int threads, bool spin, Type kv, std::vector<CacheLayer> layers,
           std::vector<Slot> slots)
    : isa_(isa),
      kv_(kv),
      layers_(std::move(layers)),
      slots_(std::move(slots)),
      scratch_(threads),
      pool_(threads, spin) {
  constexpr int64_t kMost = 1 << 24;
  for (const Slot& slot : slots_)
    require((slot.axis == 'T' || slot.axis == 'R') && slot.width > 0 && slot.width < INT32_MAX,
            "a slot is an axis, T or R, and a width");
  for (const CacheLayer& layer : layers_) {
    require(layer.kv_heads > 0 && layer.kv_heads < kMost && layer.channels > 0 &&
                layer.channels < kMost,
            "a layer's kv heads and channels must be positive");
    offsets_.push_back(block_bytes_);
    block_bytes_ += 2 * layer.kv_heads * kBlock * position_bytes(kv, layer.channels);
    require(block_bytes_ < int64_t{1} << 48, "a cache block is too large");
  }
}

// A vector is expanded by the very kernel that looks up embeddings: as row 0 of a table.
int Plan::tensor(const void* data, Type type, const std::vector<int64_t>& shape) {
  const Turn turn(*this);
  require(shape.size() == 1 || shape.size() == 2, "a tensor has one or two dimensions");
  for (const int64_t n : shape) require(n > 0 && n < INT32_MAX, "a tensor has an empty dimension");
  Tensor tensor{type, data, shape.size() == 2 ? shape[0] : 1, shape.back()};
  if (shape.size() == 1) {
    const FloatMode mode;
    const Record lookup{Op::kEmbed, {}, 0, {tensor}, 0, tensor.columns, {kIds}, {}};
    const int32_t zero = 0;
    const Batch batch{&zero, &zero, &zero, &zero, &zero, 1, 1, 1, 1};
    vectors_.push_back(allocate(tensor.columns));
    const Call call{&lookup, {}, vectors_.back().get(), 1, &batch, nullptr};
    isa_.kernels[static_cast<int>(Op::kEmbed)](call,
                                               Worker{0, 1, nullptr, nullptr, nullptr, {}, {}});
    tensor = {Type::kF32, vectors_.back().get(), 1, tensor.columns};
  }
  tensors_.push_back(tensor);
  return static_cast<int>(tensors_.size()) - 1;
}

int Plan::matrix(const void* data, Type type, int64_t rows, int64_t columns) {
  const Turn turn(*this);
  require(is_blocks(type), "a matrix in blocks has a type of blocks");
  require(rows > 0 && rows < INT32_MAX && columns > 0 && columns < INT32_MAX,
          "a matrix has an empty dimension");
  tensors_.push_back({type, data, rows, columns});
  return static_cast<int>(tensors_.size()) - 1;
}

// A barrier comes before each record but those that neither meet nor read what was written since
// the last one.
bool Plan::must_wait(const Record& record) const {
  const bool meets = record.op == Op::kLinear || record.op == Op::kProduct ||
                     record.op == Op::kAttention || record.op == Op::kAttend;
  if (meets) return true;
  for (size_t i = records_.size(); i-- > 0;) {
    const Record& before = records_[i];
    const auto touches = [&](int slot) {
      return slot == before.output ||
             (slot == record.output && std::ranges::count(before.inputs, slot));
    };
    if (touches(record.output) || std::ranges::any_of(record.inputs, touches)) return true;
    if (waits_[i]) return false;
  }
  return false;
}

void Plan::commit(const Record& record) {
  waits_.push_back(!records_.empty() && must_wait(record));
  records_.push_back(record);
  slots_[record.output].used = record.width_out;
  if (record.op == Op::kEmbed) {
    int64_t& limit = record.ints[kEmbedSource] == kIds ? id_limit_ : position_limit_;
    limit = std::min(limit, record.tensors[0].rows);
  }
  if (record.op == Op::kAttention || record.op == Op::kAttend) {
    const int64_t window = record.ints[kAttentionWindow];
    window_ = window == 0 || window_ == 0 ? 0 : std::max(window_, window);
  }
}

// ---- the cache ---------------------------------------------------------------------------------

// Fresh blocks are zeros that the system maps when they are first written.
void Plan::resize(int64_t blocks) {
  const Turn turn(*this);
  if (blocks < this->blocks())
    refuse("blocks is " + to_string(blocks) + ", fewer than the " + to_string(this->blocks()) +
           " there are");
  if (blocks > INT32_MAX || blocks > (int64_t{1} << 48) / (block_bytes_ + 64))
    throw std::bad_alloc();
  const size_t before = memory_.size();
  blocks_.reserve(blocks);
  try {
    while (memory_.size() < static_cast<size_t>(blocks)) {
      memory_.emplace_back(static_cast<char*>(std::calloc(1, block_bytes_ + 64)));
      if (!memory_.back()) throw std::bad_alloc();
    }
  } catch (...) {
    memory_.resize(before);
    throw;
  }
  for (size_t i = before; i < memory_.size(); ++i) {
    const auto address = reinterpret_cast<uintptr_t>(memory_[i].get());
    blocks_.push_back(memory_[i].get() + (-address & 63));
  }
}

char* Plan::find_block(int64_t block) {
  if (!is_choice(block, blocks_.size()))
    refuse("block " + to_string(block) + " is not one of the " + to_string(blocks_.size()));
  return blocks_[block];
}

void Plan::copy(int64_t source, int64_t target) {
  const Turn turn(*this);
  std::memmove(find_block(target), find_block(source), block_bytes_);
}

void Plan::poison(int64_t block) {
  const Turn turn(*this);
  std::memset(find_block(block), 0xff, block_bytes_);  // all ones is NaN in f32 and bf16
}

// A layer is runs of 64 slots: keys then values of each head, and at int8 the scales of both.
void Plan::read(int64_t block, int64_t positions, char* to) {
  const Turn turn(*this);
  const char* from = find_block(block);
  require(positions >= 0 && positions <= kBlock, "a block has 0 .. 64 positions to read");
  std::memset(to, 0, block_bytes_);
  const auto take = [&](int64_t runs, int64_t slot_bytes) {
    for (; runs > 0; --runs, from += kBlock * slot_bytes, to += kBlock * slot_bytes)
      std::memcpy(to, from, positions * slot_bytes);
  };
  for (const CacheLayer& layer : layers_) {
    take(2 * layer.kv_heads, layer.channels * kTypeBytes[static_cast<int>(kv_)]);
    if (kv_ == Type::kInt8) take(2 * layer.kv_heads, sizeof(float));
  }
}

void Plan::write(int64_t block, const char* from) {
  const Turn turn(*this);
  std::memcpy(find_block(block), from, block_bytes_);
}

int64_t Plan::bytes() const {
  int64_t floats = 0;
  for (const Slot& slot : slots_) floats += slot.capacity * slot.width;
  for (const Floats& scratch : scratch_) floats += scratch ? need_.scratch : 0;
  floats += shared_ ? need_.shared : 0;
  return floats * static_cast<int64_t>(sizeof(float)) + blocks() * block_bytes_;
}

// ---- a step ------------------------------------------------------------------------------------

Result Plan::step(Step step) {
  const Turn turn(*this);
  accept(std::move(step));
  run(false);
  const Slot& slot = slots_[records_.back().output];
  return {slot.data, rows_of(slot), records_.back().width_out};
}

int Plan::trace(Step step) {
  const Turn turn(*this);
  accept(std::move(step));
  run(true);
  return failed_;
}

void Plan::reserve() {
  for (Slot& slot : slots_) {
    if (rows_of(slot) <= slot.capacity) continue;
    slot.data = nullptr;  // freed before more is taken
    slot.capacity = 0;
    slot.data = allocate(rows_of(slot) * slot.width);
    slot.capacity = rows_of(slot);
  }
  Memory need = need_;
  for (const Record& record : records_) {
    const Memory memory =
        isa_.memory(record, batch_, rows_of(slots_[record.output]), std::ssize(scratch_));
    need = {std::max(need.scratch, memory.scratch), std::max(need.shared, memory.shared)};
  }
  if (need.scratch > need_.scratch) scratch_.assign(scratch_.size(), nullptr);
  if (need.shared > need_.shared) shared_ = nullptr;
  need_ = need;
  for (Floats& scratch : scratch_)
    if (!scratch) scratch = allocate(need_.scratch);
  if (!shared_) shared_ = allocate(need_.shared);
}

void Plan::resolve() {
  cache_ = {kv_, blocks_.data(), offsets_.data()};
  calls_.clear();
  for (const Record& record : records_) {
    const Slot& output = slots_[record.output];
    Call call{&record, {}, output.data.get(), rows_of(output), &batch_, &cache_};
    for (int64_t i = 0; i < kSignatures[static_cast<int>(record.op)].inputs; ++i)
      if (record.inputs[i] >= 0) call.inputs[i] = slots_[record.inputs[i]].data.get();
    calls_.push_back(call);
  }
}

void Plan::run(bool tracing) {
  reserve();
  resolve();
  tracing_ = tracing;
  surveys_.resize(calls_.back().rows * pool_.workers());
  failed_ = -1;
  pool_.run([](void* plan, int worker) { static_cast<Plan*>(plan)->work(worker); }, this);
  conclude();
}

void Plan::work(int64_t index) {
  const auto wait = [](void* pool, int worker) { static_cast<Pool*>(pool)->barrier(worker); };
  const Worker worker{index, pool_.workers(), scratch_[index].get(), shared_.get(),
                      wait,  &pool_,          pool_.tickets()};
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Call& call = calls_[i];
    if (call.rows == 0) continue;  // no logits are wanted
    if (waits_[i]) worker.barrier();
    isa_.kernels[static_cast<int>(call.record->op)](call, worker);
    if (!tracing_) continue;
    worker.barrier();
    if (index == 0) find_failure(i);
    worker.barrier();
    if (failed_ >= 0) return;
  }
  worker.barrier();
  survey(index);
}

void Plan::find_failure(size_t i) {
  if (!all_finite(calls_[i].output, calls_[i].rows * calls_[i].record->width_out))
    failed_ = static_cast<int>(i);
}

// Each worker looks at a share of the columns, which it has most likely just computed.
void Plan::survey(int64_t index) {
  const Call& last = calls_.back();
  const int64_t width = last.record->width_out, workers = pool_.workers();
  const int64_t begin = width * index / workers, end = width * (index + 1) / workers;
  for (int64_t r = 0; r < last.rows; ++r) {
    Survey& mine = surveys_[r * workers + index];
    mine = isa_.survey(last.output + r * width + begin, end - begin);
    mine.index += static_cast<int32_t>(begin);
  }
}

void Plan::conclude() {
  const int64_t workers = pool_.workers(), rows = calls_.back().rows;
  finite_.assign(rows, 1);
  best_.assign(rows, 0);
  for (int64_t r = 0; r < rows; ++r) {
    Survey best = surveys_[r * workers];
    finite_[r] = best.finite;
    for (int64_t w = 1; w < workers; ++w) {
      const Survey& other = surveys_[r * workers + w];
      finite_[r] &= other.finite;
      if (other.best > best.best) best = other;
    }
    best_[r] = best.index;
  }
}

}  // namespace seriatim
