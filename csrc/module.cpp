// The Python module fastcv._C. Importing it registers the ops (each door does so by a static object);
// what it exposes itself has no tensors in it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/door.h"
#include "common/isa.h"
#include "common/variant.h"
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
        if (&fastcv::emulator::seed == nullptr)
          throw std::runtime_error("this build of fastcv has no emulator; build with FASTCV_EMULATOR=ON");
        fastcv::emulator::seed(seed);
      },
      py::arg("seed"), "Another order of threads and blocks for every later emulated launch.");
}
