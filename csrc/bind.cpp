// The module `seriatim._native`: Python's view of a plan. Arrays come as buffers, checked here by
// name; the GIL is released for the whole of a step.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>

#include "isas.h"
#include "plan.h"

namespace nb = nanobind;

namespace seriatim {
namespace {

std::vector<std::pair<std::string, Names>> isas() {
  std::vector<std::pair<std::string, Names>> all;
  for (const Choice& choice : choices()) all.emplace_back(choice.isa.name, choice.lacks);
  return all;
}

const Isa& find_isa(const std::string& name) {
  for (const Choice& choice : choices())
    if (choice.lacks.empty() && name == choice.isa.name) return choice.isa;
  throw std::invalid_argument("isa " + name + " does not run on this processor");
}

std::map<std::string, int> op_codes() {
  std::map<std::string, int> codes;
  for (int i = 0; i < kOps; ++i) codes[kOpNames[i]] = i;
  return codes;
}

template <size_t N>
Names words(const char* const (&table)[N]) {
  return {table, table + N};
}

std::map<std::string, Names> tables() {
  return {
      {"activation", words(kActivations)}, {"kind", words(kNorms)}, {"finish", words(kFinishes)},
      {"layout", words(kLayouts)},         {"norm", words(kNorms)}, {"source", words(kSources)},
      {"visible", words(kVisible)}};
}

Type find_type(const std::string& what, const std::string& name,
               const std::vector<std::pair<std::string, Type>>& choices) {
  std::string all;
  for (const auto& [choice, type] : choices) {
    if (name == choice) return type;
    all += (all.empty() ? "" : ", ") + choice;
  }
  throw std::invalid_argument(what + " " + name + "; expected " + all);
}

// A C-contiguous array of one element format, read where it lies and kept alive.
class Buffer {
 public:
  Buffer(nb::handle array, const char* name, const char* formats, Py_ssize_t bytes,
         int dimensions) {
    if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) {
      PyErr_Clear();
      throw std::invalid_argument(std::string(name) + " is not a C-contiguous array");
    }
    const std::string format = view_.format ? view_.format : "B";
    const bool fine = format.size() == 1 &&
                      std::string(formats).find(format) != std::string::npos &&
                      view_.itemsize == bytes && (dimensions == 0 || view_.ndim == dimensions);
    if (fine) return;
    const std::string seen = std::to_string(view_.ndim) + " dimensions of format " + format;
    PyBuffer_Release(&view_);
    throw std::invalid_argument(std::string(name) + " has " + seen + "; expected format " +
                                formats);
  }
  Buffer(Buffer&& other) noexcept : view_(other.view_) { other.view_.obj = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
    if (view_.obj) PyBuffer_Release(&view_);
  }

  const void* data() const { return view_.buf; }
  std::vector<int64_t> shape() const { return {view_.shape, view_.shape + view_.ndim}; }
  std::vector<int32_t> integers() const {
    const auto* begin = static_cast<const int32_t*>(view_.buf);
    return {begin, begin + view_.len / static_cast<Py_ssize_t>(sizeof(int32_t))};
  }

 private:
  Py_buffer view_;
};

Buffer integers(nb::handle array, const char* name, int dimensions) {
  return Buffer(array, name, "il", sizeof(int32_t), dimensions);
}

Step make_step(nb::handle ids, nb::handle position, nb::handle sequence, nb::handle block_table,
               nb::handle rows) {
  const Buffer table = integers(block_table, "block_table", 2);
  return {integers(ids, "ids", 1).integers(),
          integers(position, "position", 1).integers(),
          integers(sequence, "sequence", 1).integers(),
          table.integers(),
          integers(rows, "rows", 1).integers(),
          table.shape()[0],
          table.shape()[1]};
}

std::vector<CacheLayer> make_layers(const std::vector<std::pair<int64_t, int64_t>>& layers) {
  std::vector<CacheLayer> made;
  for (const auto& [kv_heads, channels] : layers) made.push_back({kv_heads, channels});
  return made;
}

std::vector<Slot> make_slots(const std::vector<std::pair<std::string, int64_t>>& slots) {
  std::vector<Slot> made;
  for (const auto& [axis, width] : slots) made.push_back({axis.size() == 1 ? axis[0] : '?', width});
  return made;
}

int checked_threads(int threads) {
  if (threads < 1 || threads > 1024)
    throw std::invalid_argument("threads is " + std::to_string(threads) + "; expected 1 .. 1024");
  return threads;
}

Type find_kv(const std::string& name) {
  return find_type("kv", name, {{"f32", Type::kF32}, {"bf16", Type::kBF16}, {"int8", Type::kInt8}});
}

using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

template <class T>
nb::capsule owner(T* value) {
  return nb::capsule(value, [](void* p) noexcept { delete static_cast<T*>(p); });
}

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> copied(const std::vector<T>& values) {
  auto* copy = new std::vector<T>(values);
  const size_t shape[] = {copy->size()};
  return {copy->data(), 1, shape, owner(copy)};
}

template <class F>
auto without_gil(F&& f) {
  const nb::gil_scoped_release release;
  return f();
}

// The plan and the Python arrays that its tensors lie in.
class PyPlan {
 public:
  PyPlan(const std::string& isa, int threads, const std::string& kv,
         const std::vector<std::pair<int64_t, int64_t>>& layers,
         const std::vector<std::pair<std::string, int64_t>>& slots, bool spin)
      : plan_(find_isa(isa), checked_threads(threads), spin, find_kv(kv), make_layers(layers),
              make_slots(slots)) {}

  Plan& plan() { return plan_; }

  int tensor(nb::handle array, const std::string& dtype) {
    const Type type = find_type("dtype", dtype,
                                {{"f32", Type::kF32}, {"f16", Type::kF16}, {"bf16", Type::kBF16}});
    const char* format = type == Type::kF32 ? "f" : type == Type::kF16 ? "e" : "H";
    Buffer buffer(array, "tensor", format, kTypeBytes[static_cast<int>(type)], 0);
    kept_.reserve(kept_.size() + 1);
    const int number = plan_.tensor(buffer.data(), type, buffer.shape());
    kept_.push_back(std::move(buffer));
    return number;
  }

  int matrix(nb::handle array, const std::string& kind, int64_t rows, int64_t columns) {
    const Type type = find_type(
        "kind", kind, {{"int8", Type::kInt8}, {"int6", Type::kInt6}, {"int4", Type::kInt4}});
    Buffer buffer(array, "matrix", "B", 1, 3);
    const std::vector<int64_t> shape = blocks_shape(type, rows, columns);
    if (buffer.shape() != shape)
      throw std::invalid_argument("matrix is not " + std::to_string(shape[0]) + " x " +
                                  std::to_string(shape[1]) + " x " + std::to_string(shape[2]) +
                                  " bytes");
    kept_.reserve(kept_.size() + 1);
    const int number = plan_.matrix(buffer.data(), type, rows, columns);
    kept_.push_back(std::move(buffer));
    return number;
  }

  Logits step(nb::handle ids, nb::handle position, nb::handle sequence, nb::handle block_table,
              nb::handle rows) {
    Step step = make_step(ids, position, sequence, block_table, rows);
    Result result = without_gil([&] { return plan_.step(std::move(step)); });
    const size_t shape[] = {static_cast<size_t>(result.rows), static_cast<size_t>(result.width)};
    float* data = result.data.get();
    return Logits(data, 2, shape, owner(new Floats(std::move(result.data))));
  }

  int trace(nb::handle ids, nb::handle position, nb::handle sequence, nb::handle block_table,
            nb::handle rows) {
    Step step = make_step(ids, position, sequence, block_table, rows);
    return without_gil([&] { return plan_.trace(std::move(step)); });
  }

  auto read(int64_t block, int64_t positions) {
    std::vector<uint8_t> bytes(plan_.block_bytes());
    plan_.read(block, positions, reinterpret_cast<char*>(bytes.data()));
    return copied(bytes);
  }

  void write(int64_t block, nb::handle bytes) {
    const Buffer buffer(bytes, "bytes", "B", 1, 1);
    if (buffer.shape()[0] != plan_.block_bytes())
      throw std::invalid_argument("a block has " + std::to_string(plan_.block_bytes()) + " bytes");
    plan_.write(block, static_cast<const char*>(buffer.data()));
  }

  auto finite() const { return copied(plan_.finite()); }
  auto best() const { return copied(plan_.best()); }

 private:
  Plan plan_;
  std::vector<Buffer> kept_;
};

}  // namespace

void bind_sampler(nb::module_& m);  // bind_sampler.cpp

}  // namespace seriatim

NB_MODULE(_native, m) {
  using namespace seriatim;
  using namespace nanobind::literals;
  m.def("isas", isas);
  m.def("features", features);
  m.def("op_codes", op_codes);
  m.def("tables", tables);
  m.def("set_flush_to_zero", set_flush_to_zero, "on"_a);
  nb::class_<PyPlan>(m, "Plan")
      .def(nb::init<const std::string&, int, const std::string&,
                    const std::vector<std::pair<int64_t, int64_t>>&,
                    const std::vector<std::pair<std::string, int64_t>>&, bool>(),
           "isa"_a, "threads"_a, "kv"_a, "layers"_a, "slots"_a, "spin"_a = true)
      .def("tensor", &PyPlan::tensor, "array"_a, "dtype"_a)
      .def("matrix", &PyPlan::matrix, "array"_a, "kind"_a, "rows"_a, "columns"_a)
      .def(
          "add",
          [](PyPlan& p, int op, const std::vector<int>& inputs, const std::vector<int>& tensors,
             int output, const std::vector<int64_t>& ints, const std::vector<double>& floats) {
            p.plan().add(op, inputs, tensors, output, ints, floats);
          },
          "op"_a, "inputs"_a, "tensors"_a, "output"_a, "ints"_a, "floats"_a)
      .def(
          "resize", [](PyPlan& p, int64_t blocks) { p.plan().resize(blocks); }, "blocks"_a)
      .def(
          "copy", [](PyPlan& p, int64_t from, int64_t to) { p.plan().copy(from, to); }, "source"_a,
          "target"_a)
      .def(
          "poison", [](PyPlan& p, int64_t block) { p.plan().poison(block); }, "block"_a)
      .def("read", &PyPlan::read, "block"_a, "positions"_a)
      .def("write", &PyPlan::write, "block"_a, "bytes"_a)
      .def("step", &PyPlan::step, "ids"_a.none(), "position"_a.none(), "sequence"_a.none(),
           "block_table"_a.none(), "rows"_a.none())
      .def("trace", &PyPlan::trace, "ids"_a.none(), "position"_a.none(), "sequence"_a.none(),
           "block_table"_a.none(), "rows"_a.none())
      .def("finite", &PyPlan::finite)
      .def("best", &PyPlan::best)
      .def_prop_ro("blocks", [](PyPlan& p) { return p.plan().blocks(); })
      .def_prop_ro("block_bytes", [](PyPlan& p) { return p.plan().block_bytes(); })
      .def_prop_ro("bytes", [](PyPlan& p) { return p.plan().bytes(); });
  bind_sampler(m);
}
