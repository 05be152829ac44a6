#include "plan.h"

#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace seriatim {
namespace {

using std::to_string;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void require(bool fine, const char* what) {
  if (!fine) refuse(what);
}

// How many of each a record carries.
struct Signature { size_t inputs, tensors, ints, floats; };
constexpr Signature kSignatures[kOps] = {
    {0, 1, 1, 0}, {1, 2, 0, 0}, {1, 2, 2, 1}, {0, 1, 0, 1}, {2, 0, 2, 0}, {3, 0, 5, 2},
    {2, 0, 1, 0}, {1, 0, 1, 0}, {2, 0, 0, 0}, {1, 0, 0, 1}, {1, 0, 0, 1}, {1, 0, 0, 0}};

Floats allocate(int64_t floats) {
  constexpr std::align_val_t kLine{64};
  void* memory = ::operator new(static_cast<size_t>(floats) * sizeof(float), kLine);
  return Floats(static_cast<float*>(memory), [](float* p) { ::operator delete(p, kLine); });
}

int64_t width_out(const Record& record) {
  switch (record.op) {
    case Op::kEmbed: return record.tensors[0].columns;
    case Op::kLinear: return record.tensors[0].rows;
    case Op::kRotary: return 2 * record.tensors[0].columns;
    default: return record.width_in;
  }
}

bool is_choice(int64_t value, size_t choices) {
  return value >= 0 && value < static_cast<int64_t>(choices);
}

bool is_vector(const Tensor& tensor, int64_t length) {
  return !tensor.data || (tensor.rows == 1 && tensor.type == Type::kF32 && tensor.columns == length);
}

bool divides(int64_t heads, int64_t width) { return heads > 0 && width % heads == 0; }

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

// ---- making a plan -----------------------------------------------------------------------------

Plan::Plan(const Isa& isa, int threads, bool spin, Type kv, std::vector<CacheLayer> layers,
           std::vector<Slot> slots)
    : isa_(isa), kv_(kv), layers_(std::move(layers)), slots_(std::move(slots)),
      scratch_(threads), pool_(threads, spin) {
  constexpr int64_t kMost = 1 << 24;
  for (const Slot& slot : slots_)
    require((slot.axis == 'T' || slot.axis == 'R') && slot.width > 0 && slot.width < INT32_MAX,
            "a slot is an axis, T or R, and a width");
  for (const CacheLayer& layer : layers_) {
    require(layer.kv_heads > 0 && layer.kv_heads < kMost && layer.channels > 0 &&
                layer.channels < kMost, "a layer's kv heads and channels must be positive");
    offsets_.push_back(block_bytes_);
    block_bytes_ +=
        2 * layer.kv_heads * kBlock * layer.channels * kTypeBytes[static_cast<int>(kv)];
    require(block_bytes_ < int64_t{1} << 48, "a cache block is too large");
  }
}

// A vector is expanded by the very kernel that looks up embeddings: as row 0 of a table.
int Plan::tensor(const void* data, Type type, const std::vector<int64_t>& shape) {
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
    isa_.kernels[static_cast<int>(Op::kEmbed)](call, Worker{0, 1, nullptr});
    tensor = {Type::kF32, vectors_.back().get(), 1, tensor.columns};
  }
  tensors_.push_back(tensor);
  return static_cast<int>(tensors_.size()) - 1;
}

Tensor Plan::find_tensor(int number) const {
  if (number == -1) return {Type::kF32, nullptr, 0, 0};
  require(is_choice(number, tensors_.size()), "no such tensor");
  return tensors_[number];
}

const Slot& Plan::find_slot(int number) const {
  require(is_choice(number, slots_.size()), "no such slot");
  return slots_[number];
}

void Plan::add(int op, const std::vector<int>& inputs, const std::vector<int>& tensors, int output,
               const std::vector<int64_t>& ints, const std::vector<double>& floats) {
  if (!is_choice(op, kOps)) refuse("op code " + to_string(op) + " is not in the table");
  const Signature& expected = kSignatures[op];
  Record record{static_cast<Op>(op), {}, output, {}, 0, 0, {}, {}};
  try {
    require(inputs.size() == expected.inputs, "wrong number of inputs");
    require(tensors.size() == expected.tensors, "wrong number of tensors");
    require(ints.size() == expected.ints, "wrong number of integers");
    require(floats.size() == expected.floats, "wrong number of floats");
    for (const double value : floats) require(std::isfinite(value), "an attribute is not finite");
    std::copy(inputs.begin(), inputs.end(), record.inputs);
    std::copy(ints.begin(), ints.end(), record.ints);
    std::copy(floats.begin(), floats.end(), record.floats);
    for (size_t i = 0; i < tensors.size(); ++i) record.tensors[i] = find_tensor(tensors[i]);
    if (!inputs.empty()) record.width_in = find_slot(inputs[0]).used;
    record.width_out = width_out(record);
    check_axes(record);
    check_shapes(record);
    if (record.op == Op::kRope) record.ints[kRopeTurned] = slots_[record.inputs[1]].used;
    commit(record);
  } catch (const std::invalid_argument& error) {
    refuse("record " + to_string(records_.size()) + ", " + kOpNames[op] + ": " + error.what());
  }
}

void Plan::check_axes(const Record& record) const {
  const Slot& output = find_slot(record.output);
  const size_t count = kSignatures[static_cast<int>(record.op)].inputs;
  for (size_t i = 0; i < count; ++i) {
    const Slot& input = find_slot(record.inputs[i]);
    require(input.used > 0, "an input was never written");
    require(record.inputs[i] != record.output, "the output is also an input");
    require(input.axis == find_slot(record.inputs[0]).axis, "the inputs' axes differ");
  }
  const bool token_op =
      count == 0 || record.op == Op::kRope || record.op == Op::kAttention || record.op == Op::kRows;
  const char axis = token_op ? 'T' : find_slot(record.inputs[0]).axis;
  if (count) require(find_slot(record.inputs[0]).axis == axis, "the input must have axis T");
  require(output.axis == (record.op == Op::kRows ? 'R' : axis), "the output has the wrong axis");
  require(record.width_out > 0 && record.width_out <= output.width, "the output does not fit");
}

void Plan::check_shapes(const Record& record) const {
  const auto& [op, inputs, output, tensors, width, width_out, ints, floats] = record;
  const auto used = [&](int i) { return slots_[record.inputs[i]].used; };
  switch (op) {
    case Op::kEmbed:
      require(tensors[0].data, "the table is absent");
      return require(is_choice(ints[kEmbedSource], std::size(kSources)), "unknown source");
    case Op::kLinear:
      require(tensors[0].data && tensors[0].columns == width, "weight and input disagree");
      return require(is_vector(tensors[1], tensors[0].rows), "bias and weight disagree");
    case Op::kNorm:
      require(is_choice(ints[kNormKind], std::size(kNorms)), "unknown kind");
      require(divides(ints[kNormHeads], width), "heads must divide the width");
      require(floats[0] >= 0, "eps must not be negative");
      return require(is_vector(tensors[0], width / ints[kNormHeads]) &&
                         is_vector(tensors[1], width / ints[kNormHeads]),
                     "weight or bias and a head's width disagree");
    case Op::kRotary:
      return require(tensors[0].data && is_vector(tensors[0], tensors[0].columns),
                     "frequencies must be a vector");
    case Op::kRope:
      require(is_choice(ints[kRopeLayout], std::size(kLayouts)), "unknown layout");
      require(divides(ints[kRopeHeads], width), "heads must divide the width");
      return require(used(1) % 2 == 0 && used(1) <= width / ints[kRopeHeads],
                     "more angles than channels");
    case Op::kAttention: {
      require(is_choice(ints[kAttentionLayer], layers_.size()), "no such layer");
      const auto [kv_heads, channels] = layers_[ints[kAttentionLayer]];
      require(ints[kAttentionKvHeads] == kv_heads, "kv heads and the layer's disagree");
      require(divides(kv_heads, ints[kAttentionHeads]) && ints[kAttentionHeads] > 0,
              "kv heads must divide heads");
      require(divides(ints[kAttentionHeads], width) && width / ints[kAttentionHeads] == channels,
              "the query's width is not heads * channels");
      require(used(1) == kv_heads * channels && used(2) == kv_heads * channels,
              "the key's or value's width is not kv heads * channels");
      require(is_choice(ints[kAttentionVisible], std::size(kVisible)), "unknown visible");
      require(ints[kAttentionWindow] >= 0, "the window must not be negative");
      return require(floats[kAttentionSoftcap] >= 0, "softcap must not be negative");
    }
    case Op::kGate:
    case Op::kActivate:
      require(is_choice(ints[kActivation], std::size(kActivations)), "unknown activation");
      return require(op == Op::kActivate || used(1) == width, "the widths differ");
    case Op::kAdd: return require(used(1) == width, "the widths differ");
    case Op::kSoftcap: return require(floats[0] > 0, "cap must be positive");
    default: return;
  }
}

void Plan::commit(const Record& record) {
  records_.push_back(record);
  slots_[record.output].used = record.width_out;
  scratch_floats_ = std::max(scratch_floats_, isa_.scratch(record));
  if (record.op == Op::kEmbed) {
    int64_t& limit = record.ints[kEmbedSource] == kIds ? id_limit_ : position_limit_;
    limit = std::min(limit, record.tensors[0].rows);
  }
  if (record.op == Op::kAttention) {
    const int64_t window = record.ints[kAttentionWindow];
    window_ = window == 0 || window_ == 0 ? 0 : std::max(window_, window);
  }
}

// ---- the cache ---------------------------------------------------------------------------------

// Marks a plan as in use, for a step or a change.
class Plan::Turn {
 public:
  explicit Turn(Plan& plan) : plan_(plan) {
    if (plan_.busy_.exchange(true)) throw std::runtime_error("a step of this plan is running");
  }
  ~Turn() { plan_.busy_ = false; }

 private:
  Plan& plan_;
};

// Fresh blocks are zeros that the system maps when they are first written.
void Plan::resize(int64_t blocks) {
  const Turn turn(*this);
  if (blocks < this->blocks())
    refuse("blocks is " + to_string(blocks) + ", fewer than the " + to_string(this->blocks()) +
           " there are");
  if (blocks > INT32_MAX || blocks > (int64_t{1} << 48) / (block_bytes_ + 64)) throw std::bad_alloc();
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

int64_t Plan::bytes() const {
  int64_t floats = 0;
  for (const Slot& slot : slots_) floats += slot.capacity * slot.width;
  for (const Floats& scratch : scratch_) floats += scratch ? scratch_floats_ : 0;
  return floats * static_cast<int64_t>(sizeof(float)) + blocks() * block_bytes_;
}

// ---- a step ------------------------------------------------------------------------------------

Result Plan::step(Step step) {
  const Turn turn(*this);
  accept(std::move(step));
  run();
  const Slot& slot = slots_[records_.back().output];
  return {slot.data, rows_of(slot), records_.back().width_out};
}

int Plan::trace(Step step) {
  const Turn turn(*this);
  accept(std::move(step));
  tracing_ = true;
  run();
  tracing_ = false;
  return failed_;
}

void Plan::accept(Step step) {
  require(!records_.empty(), "the plan has no records");
  const size_t tokens = step.ids.size();
  require(tokens > 0, "ids is empty");
  require(tokens <= INT32_MAX, "ids is too long");
  require(step.position.size() == tokens, "position and ids differ in length");
  require(step.sequence.size() == tokens, "sequence and ids differ in length");
  step_ = std::move(step);
  const auto [ids, position, sequence, table, rows, sequences, blocks] = [&] {
    return std::tuple(step_.ids.data(), step_.position.data(), step_.sequence.data(),
                      step_.block_table.data(), step_.rows.data(), step_.sequences, step_.blocks);
  }();
  batch_ = {ids, position, sequence, table, rows, static_cast<int64_t>(tokens), sequences, blocks,
            static_cast<int64_t>(step_.rows.size())};
  std::vector<bool> seen(sequences);
  for (size_t t = 0; t < tokens; ++t) {
    check_token(t);
    const bool first = t == 0 || sequence[t] != sequence[t - 1];
    if (first && seen[sequence[t]])
      refuse("sequence " + to_string(sequence[t]) + " comes twice; its tokens must be consecutive");
    seen[sequence[t]] = true;
  }
  for (size_t r = 0; r < step_.rows.size(); ++r)
    if (!is_choice(rows[r], tokens) || (r && rows[r] <= rows[r - 1]))
      refuse("rows[" + to_string(r) + "] is " + to_string(rows[r]) + "; they must ascend below " +
             to_string(tokens));
}

void Plan::check_token(size_t t) const {
  const auto at = [t](const char* name, int64_t value) {
    return std::string(name) + "[" + to_string(t) + "] is " + to_string(value);
  };
  const int64_t id = step_.ids[t], position = step_.position[t], sequence = step_.sequence[t];
  if (!is_choice(id, id_limit_)) refuse(at("ids", id) + " of " + to_string(id_limit_));
  if (!is_choice(position, position_limit_))
    refuse(at("position", position) + " of " + to_string(position_limit_));
  if (!is_choice(sequence, batch_.sequences))
    refuse(at("sequence", sequence) + " of " + to_string(batch_.sequences));
  const bool follows = t && step_.sequence[t - 1] == sequence;
  if (follows && step_.position[t - 1] >= position)
    refuse(at("position", position) + ", not above the one before it in its sequence");
  if (window_ < 0) return;
  if (position / kBlock >= batch_.blocks)
    refuse(at("position", position) + ", beyond the " + to_string(batch_.blocks) +
           " blocks of block_table");
  const int64_t first = window_ && position >= window_ ? position - window_ + 1 : 0;
  check_blocks(sequence, follows ? step_.position[t - 1] / kBlock : first / kBlock,
               position / kBlock);
}

void Plan::check_blocks(int64_t sequence, int64_t first, int64_t last) const {
  for (int64_t i = first; i <= last; ++i) {
    const int64_t block = step_.block_table[sequence * batch_.blocks + i];
    if (!is_choice(block, blocks_.size()))
      refuse("block_table[" + to_string(sequence) + ", " + to_string(i) + "] is " +
             to_string(block) + " of " + to_string(blocks_.size()));
  }
}

void Plan::reserve() {
  for (Slot& slot : slots_) {
    if (rows_of(slot) <= slot.capacity) continue;
    slot.data = nullptr;  // freed before more is taken
    slot.capacity = 0;
    slot.data = allocate(rows_of(slot) * slot.width);
    slot.capacity = rows_of(slot);
  }
  for (Floats& scratch : scratch_)
    if (!scratch) scratch = allocate(scratch_floats_);
}

void Plan::resolve() {
  cache_ = {kv_, blocks_.data(), offsets_.data()};
  calls_.clear();
  for (const Record& record : records_) {
    const Slot& output = slots_[record.output];
    Call call{&record, {}, output.data.get(), rows_of(output), &batch_, &cache_};
    for (size_t i = 0; i < kSignatures[static_cast<int>(record.op)].inputs; ++i)
      call.inputs[i] = slots_[record.inputs[i]].data.get();
    calls_.push_back(call);
  }
}

void Plan::run() {
  reserve();
  resolve();
  finite_.assign(calls_.back().rows, 1);
  failed_ = -1;
  pool_.run([](void* plan, int worker) { static_cast<Plan*>(plan)->work(worker); }, this);
}

void Plan::work(int64_t index) {
  const Worker worker{index, pool_.workers(), scratch_[index].get()};
  for (size_t i = 0; i < calls_.size(); ++i) {
    const Call& call = calls_[i];
    if (call.rows == 0) continue;  // no logits are wanted
    if (call.record->op == Op::kAttention) {
      isa_.kernels[static_cast<int>(Op::kStore)](call, worker);
      pool_.barrier(static_cast<int>(index));
    }
    isa_.kernels[static_cast<int>(call.record->op)](call, worker);
    pool_.barrier(static_cast<int>(index));
    if (!tracing_) continue;
    if (index == 0) find_failure(i);
    pool_.barrier(static_cast<int>(index));
    if (failed_ >= 0) return;
  }
  check_finite(worker);
}

void Plan::find_failure(size_t i) {
  if (!all_finite(calls_[i].output, calls_[i].rows * calls_[i].record->width_out))
    failed_ = static_cast<int>(i);
}

// Each worker looks at a share of the columns: the rows of the head that it has just computed.
void Plan::check_finite(Worker worker) {
  const Call& last = calls_.back();
  const int64_t width = last.record->width_out;
  const int64_t begin = width * worker.index / worker.count;
  const int64_t end = width * (worker.index + 1) / worker.count;
  for (int64_t r = 0; r < last.rows; ++r)
    if (!all_finite(last.output + r * width + begin, end - begin))
      std::atomic_ref(finite_[r]).store(0, std::memory_order_relaxed);
}

}  // namespace seriatim
