// The Python module fastcv._C. Importing it registers the ops (each door does so by a static object);
// what it exposes itself takes no tensors, but for Watch, which looks at them as Python does.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/door.h"
#include "common/isa.h"
#include "common/steady.h"
#include "common/variant.h"
#include "common/watch.h"
#include "emulator/emulator.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FASTCV_VERSION;
  info["git"] = FASTCV_GIT_SHA;
  info["compiler"] = FASTCV_COMPILER;
  info["torch"] = FASTCV_BUILD_TORCH;
#if FASTCV_WITH_CUDA
  info["cuda"] = true;
  info["cuda_archs"] = FASTCV_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["cuda_archs"] = "";
#endif
  info["emulator"] = &fastcv::emulator::seed != nullptr;
  return info;
}

fastcv::Steady* steady_of(PyObject* object) {
  const auto held = reinterpret_cast<py::detail::instance*>(object)->get_value_and_holder();
  return held.holder_constructed() ? held.value_ptr<fastcv::Steady>() : nullptr;
}
void collect_cycles_of_steady(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    const fastcv::Steady* steady = steady_of(self);
    return steady == nullptr ? 0 : steady->traverse(visit, arg);
  };
  type.tp_clear = [](PyObject* self) {
    if (fastcv::Steady* steady = steady_of(self)) steady->clear();
    return 0;
  };
}

void need_emulator() {
  if (&fastcv::emulator::seed == nullptr)
    throw std::runtime_error("this build of fastcv has no emulator; build with FASTCV_EMULATOR=ON");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Ops of fastcv (registered with torch on import) and their variant tables.";
  m.def("build_info", &build_info, "What this module was built with.");
  m.def("cpu_isa", [] { return std::string(fastcv::isa_name(fastcv::cpu_isa())); }, "The instruction set in use.");
  m.def("variant_ops", &fastcv::variant_ops, "Names of the ops that have variants.");
  m.def(
      "variants",
      [](const std::string& op) {
        std::vector<std::pair<std::string, std::string>> rows;
        for (const auto& row : fastcv::variants(op)) rows.emplace_back(row.name, fastcv::needs(row));
        return rows;
      },
      py::arg("op"), "(name, instruction set) of every variant of an op, in the order of preference.");
  m.def("force_variant", &fastcv::force_variant, py::arg("op"), py::arg("name"),
        "Always take this variant; '' to choose again.");
  m.def("record_choices", &fastcv::record_choices, py::arg("on"), "Start or stop recording which variants calls take.");
  m.def(
      "take_recorded_choices",
      [] {
        std::vector<std::tuple<std::string, std::string, std::string>> rows;
        for (auto& c : fastcv::take_recorded_choices()) rows.emplace_back(c.op, c.variant, c.reason);
        return rows;
      },
      "The (op, variant, reason) recorded since the last call; the reason is '' for the variant that ran.");
  using Tuned = std::tuple<std::string, std::vector<int64_t>, std::string>;
  const auto listed = [](const std::vector<fastcv::TunedChoice>& choices) {
    std::vector<Tuned> rows;
    for (const auto& c : choices) rows.emplace_back(c.op, c.layer, c.variant);
    return rows;
  };
  m.def(
      "take_recorded_layers", [listed] { return listed(fastcv::take_recorded_layers()); },
      "The (op, numbers of the layer, variant) of the calls recorded since recording began.");
  m.def(
      "layer_fields",
      [](const std::string& op) {
        std::vector<std::tuple<std::string, int, std::vector<std::string>>> fields;
        for (const auto& f : fastcv::layer_fields(op))
          fields.emplace_back(f.name, f.count, std::vector<std::string>(f.words.begin(), f.words.end()));
        return fields;
      },
      py::arg("op"), "(name, how many numbers, the words that one number stands for) of what makes a layer of an op.");
  m.def(
      "why_not_tuned",
      [](const std::string& op, const std::vector<int64_t>& layer, const std::string& variant) {
        return fastcv::why_not_tuned({op, layer, variant});
      },
      py::arg("op"), py::arg("layer"), py::arg("variant"), "Why this cannot be a measured choice here; '' if it can.");
  m.def(
      "set_tuned",
      [](const std::vector<Tuned>& rows) {
        std::vector<fastcv::TunedChoice> choices;
        for (const auto& [op, layer, variant] : rows) choices.push_back({op, layer, variant});
        fastcv::set_tuned(choices);
      },
      py::arg("choices"), "Replaces all measured choices: (op, numbers of the layer, variant).");
  m.def("tuned_choices", [listed] { return listed(fastcv::tuned_choices()); }, "The measured choices that hold now.");
  m.def(
      "take_hidden_copies",
      [] {
        std::vector<std::tuple<int64_t, bool, double>> rows;
        for (const auto& c : fastcv::door::take_hidden_copies()) rows.emplace_back(c.bytes, c.channels_last, c.seconds);
        return rows;
      },
      "(bytes, channels_last, seconds) of each copy that made a tensor dense while choices were recorded.");
  m.def("forced_variant", &fastcv::forced_variant, py::arg("op"), "The forced variant, or ''.");
  m.def(
      "seed_emulator",
      [](uint64_t seed) {
        need_emulator();
        fastcv::emulator::seed(seed);
      },
      py::arg("seed"), "Another order of threads and blocks for every later emulated launch.");
  m.def(
      "emulate_most_blocks",
      [](uint64_t count) {
        need_emulator();
        fastcv::emulator::most_blocks(count);
      },
      py::arg("count"), "Of every later emulated launch only so many blocks: the last one, then the first; 0: all.");
  m.def(
      "set_emulator_product_loss",
      [](double loss) {
        need_emulator();
        fastcv::emulator::set_product_loss(loss);
      },
      py::arg("loss"),
      "What every sum of a later emulated mma.sync of floats is off by, relative to its largest addend.");
  py::class_<fastcv::Watch>(m, "Watch",
                            "The state of some CPU tensors, each of which may be None, at the time of making.")
      .def(py::init<const py::sequence&, const std::vector<fastcv::Watch::Element>&>(), py::arg("tensors"),
           py::arg("elements"), "elements: (address, bytes) of those that are compared as well.")
      .def("holds", &fastcv::Watch::holds, py::arg("tensors"),
           "True if these are the same tensors and none has changed.");
  using Places = std::vector<fastcv::Steady::Place>;
  py::class_<fastcv::Steady>(m, "Steady",
                             "The kind of an input, and the state of modules and of torch, at the time of making.",
                             py::custom_type_setup(&collect_cycles_of_steady))
      .def(py::init<const py::object&, Places, const std::vector<fastcv::Watch::Element>&, const Places&, Places,
                    Places, const std::vector<py::function>&>(),
           py::arg("x"), py::arg("tensors"), py::arg("elements"), py::arg("values"), py::arg("empty"),
           py::arg("absent"), py::arg("modes"),
           "Names as (dict, name): of tensors and (address, bytes) of their elements, of values, of empty dicts, "
           "of what is absent; modes: functions without arguments.")
      .def("holds", &fastcv::Steady::holds, py::arg("x"),
           "True if x is of that kind, whatever its first size, and everything else is as it was.");
}
