// What a plan refuses: records that do not fit together, and steps that point outside of it.
#include <algorithm>
#include <cmath>
#include <iterator>

#include "plan.h"
#include "refuse.h"

namespace seriatim {
namespace {

const Tensor& weight_of(const Record& record, int64_t i) {
  return record.tensors[kProductWeight + 2 * i];
}

int64_t product_width(const Record& record) {
  const int64_t finish = record.ints[kProductFinish];
  if (finish != kAsIs) return weight_of(record, 0).rows;
  int64_t rows = 0;
  for (int64_t i = 0; i < kLinears; ++i) rows += weight_of(record, i).rows;
  return rows;
}

int64_t width_out(const Record& record) {
  switch (record.op) {
    case Op::kEmbed:
      return record.tensors[0].columns;
    case Op::kLinear:
      return record.tensors[0].rows;
    case Op::kRotary:
      return 2 * record.tensors[0].columns;
    case Op::kProduct:
      return product_width(record);
    case Op::kAttend: {
      const int64_t heads = record.ints[kAttentionHeads];
      const int64_t all = heads + 2 * record.ints[kAttentionKvHeads];
      return heads > 0 && all > heads && record.width_in % all == 0 ? record.width_in / all * heads
                                                                    : 0;
    }
    default:
      return record.width_in;
  }
}

bool is_vector(const Tensor& tensor, int64_t length) {
  return !tensor.data ||
         (tensor.rows == 1 && tensor.type == Type::kF32 && tensor.columns == length);
}

bool divides(int64_t heads, int64_t width) { return heads > 0 && width % heads == 0; }

}  // namespace

// ---- records -----------------------------------------------------------------------------------

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
  const Turn turn(*this);
  if (!is_choice(op, kOps)) refuse("op code " + to_string(op) + " is not in the table");
  const Signature& expected = kSignatures[op];
  Record record{static_cast<Op>(op), {-1, -1, -1}, output, {}, 0, 0, {}, {}};
  try {
    require(std::ssize(inputs) <= expected.inputs &&
                std::ssize(inputs) >= expected.inputs - expected.optional,
            "wrong number of inputs");
    require(std::ssize(tensors) == expected.tensors, "wrong number of tensors");
    require(std::ssize(ints) == expected.ints, "wrong number of integers");
    require(std::ssize(floats) == expected.floats, "wrong number of floats");
    for (const double value : floats) require(std::isfinite(value), "an attribute is not finite");
    std::copy(inputs.begin(), inputs.end(), record.inputs);
    std::copy(ints.begin(), ints.end(), record.ints);
    std::copy(floats.begin(), floats.end(), record.floats);
    for (size_t i = 0; i < tensors.size(); ++i) record.tensors[i] = find_tensor(tensors[i]);
    for (const int input : inputs) find_slot(input);
    if (!inputs.empty()) record.width_in = find_slot(inputs[0]).used;
    record.width_out = width_out(record);
    check_axes(record);
    check_shapes(record);
    if (record.op == Op::kRope) record.ints[kRopeTurned] = width_of(record, 1);
    if (record.op == Op::kAttend) record.ints[kAttendTurned] = width_of(record, 1);
    commit(record);
  } catch (const std::invalid_argument& error) {
    refuse("record " + to_string(records_.size()) + ", " + kOpNames[op] + ": " + error.what());
  }
}

int64_t Plan::width_of(const Record& record, int input) const {
  return record.inputs[input] < 0 ? 0 : slots_[record.inputs[input]].used;
}

void Plan::check_axes(const Record& record) const {
  const Slot& output = find_slot(record.output);
  for (const int input : record.inputs) {
    if (input == -1) continue;
    require(find_slot(input).used > 0, "an input was never written");
    require(input != record.output, "the output is also an input");
    require(find_slot(input).axis == find_slot(record.inputs[0]).axis, "the inputs' axes differ");
  }
  const bool source = record.inputs[0] == -1;
  const bool token_op = source || record.op == Op::kRope || record.op == Op::kAttention ||
                        record.op == Op::kAttend || record.op == Op::kRows;
  const char axis = token_op ? 'T' : find_slot(record.inputs[0]).axis;
  if (!source) require(find_slot(record.inputs[0]).axis == axis, "the input must have axis T");
  require(output.axis == (record.op == Op::kRows ? 'R' : axis), "the output has the wrong axis");
  require(record.width_out > 0 && record.width_out <= output.width, "the output does not fit");
}

void Plan::check_product(const Record& record) const {
  const int64_t finish = record.ints[kProductFinish], norm = record.ints[kProductNorm];
  require(norm == -1 || is_choice(norm, std::size(kNorms)), "unknown norm");
  require(record.floats[0] >= 0, "eps must not be negative");
  require(is_choice(finish, std::size(kFinishes)), "unknown finish");
  require(is_choice(record.ints[kProductActivation], std::size(kActivations)),
          "unknown activation");
  const Tensor& first = weight_of(record, 0);
  for (int64_t i = 0; i < kLinears; ++i) {
    const Tensor &weight = weight_of(record, i), &bias = (&weight)[1];
    const bool wanted = i == 0 || (i == 1 && finish == kGated);
    require(weight.data || !wanted, "a weight is absent");
    require(!weight.data || wanted || finish == kAsIs, "a weight too many");
    if (!weight.data) {
      require(!bias.data, "a bias without a weight");
      continue;
    }
    require(weight.columns == record.width_in, "weight and input disagree");
    require(weight.type == first.type, "the weights' types differ");
    require(is_vector(bias, weight.rows), "bias and weight disagree");
  }
  require(finish != kGated || weight_of(record, 1).rows == first.rows, "gate and up disagree");
  require(width_of(record, 1) == (finish == kAdded ? first.rows : 0), "the residual disagrees");
  for (int64_t i = kProductNormWeight; i <= kProductNormBias; ++i)
    require(!record.tensors[i].data || (norm >= 0 && is_vector(record.tensors[i], record.width_in)),
            "the norm's weight or bias disagrees");
}

void Plan::check_attention(const Record& record) const {
  const auto& ints = record.ints;
  require(is_choice(ints[kAttentionLayer], layers_.size()), "no such layer");
  const auto [kv_heads, channels] = layers_[ints[kAttentionLayer]];
  const int64_t heads = ints[kAttentionHeads];
  require(ints[kAttentionKvHeads] == kv_heads, "kv heads and the layer's disagree");
  require(divides(kv_heads, heads) && heads > 0, "kv heads must divide heads");
  require(record.width_out == heads * channels, "the query's width is not heads * channels");
  require(is_choice(ints[kAttentionVisible], std::size(kVisible)), "unknown visible");
  require(ints[kAttentionWindow] >= 0, "the window must not be negative");
  require(record.floats[kAttentionSoftcap] >= 0, "softcap must not be negative");
  if (record.op == Op::kAttention)
    return require(
        width_of(record, 1) == kv_heads * channels && width_of(record, 2) == kv_heads * channels,
        "the key's or value's width is not kv heads * channels");
  require(record.width_in == (heads + 2 * kv_heads) * channels, "query, key and value disagree");
  const int64_t turned = width_of(record, 1), layout = ints[kAttendLayout];
  require(layout == -1 || is_choice(layout, std::size(kLayouts)), "unknown layout");
  require((layout == -1) == (turned == 0), "a layout without angles, or angles without");
  require(turned % 2 == 0 && turned <= channels, "more angles than channels");
  const int64_t norm = ints[kAttendNorm];
  require(norm == -1 || is_choice(norm, std::size(kNorms)), "unknown norm");
  require(record.floats[kQueryNormEps] >= 0 && record.floats[kKeyNormEps] >= 0,
          "eps must not be negative");
  for (int64_t i = 0; i < 4; ++i)
    require(!record.tensors[i].data || (norm >= 0 && is_vector(record.tensors[i], channels)),
            "a norm's weight or bias disagrees");
}

void Plan::check_shapes(const Record& record) const {
  const auto& [op, inputs, output, tensors, width, width_out, ints, floats] = record;
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
      return require(
          width_of(record, 1) % 2 == 0 && width_of(record, 1) <= width / ints[kRopeHeads],
          "more angles than channels");
    case Op::kAttention:
    case Op::kAttend:
      return check_attention(record);
    case Op::kProduct:
      return check_product(record);
    case Op::kGate:
    case Op::kActivate:
      require(is_choice(ints[kActivation], std::size(kActivations)), "unknown activation");
      return require(op == Op::kActivate || width_of(record, 1) == width, "the widths differ");
    case Op::kAdd:
      return require(width_of(record, 1) == width, "the widths differ");
    case Op::kSoftcap:
      return require(floats[0] > 0, "cap must be positive");
    default:
      return;
  }
}

// ---- steps -------------------------------------------------------------------------------------

void Plan::accept(Step step) {
  require(!records_.empty(), "the plan has no records");
  const size_t tokens = step.ids.size();
  require(tokens > 0, "ids is empty");
  require(tokens <= INT32_MAX, "ids is too long");
  require(step.position.size() == tokens, "position and ids differ in length");
  require(step.sequence.size() == tokens, "sequence and ids differ in length");
  step_ = std::move(step);
  const std::vector<int32_t>&sequence = step_.sequence, &rows = step_.rows;
  batch_ = {step_.ids.data(),         step_.position.data(), sequence.data(),
            step_.block_table.data(), rows.data(),           std::ssize(sequence),
            step_.sequences,          step_.blocks,          std::ssize(rows)};
  std::vector<bool> seen(step_.sequences);
  for (size_t t = 0; t < tokens; ++t) {
    check_token(t);
    const bool first = t == 0 || sequence[t] != sequence[t - 1];
    if (first && seen[sequence[t]])
      refuse("sequence " + to_string(sequence[t]) + " comes twice; its tokens must be consecutive");
    seen[sequence[t]] = true;
  }
  for (size_t r = 0; r < rows.size(); ++r)
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

}  // namespace seriatim
