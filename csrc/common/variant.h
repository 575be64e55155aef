// The variant table: every implementation of an op is a row, the first row that can run is taken, and the rows are
// enumerable from Python, so that no kernel exists that no test and no benchmark runs.
//
// Names follow docs/naming.md: <algorithm>[_<layout>][_<dtype>]_<isa>; a part is left out where the row serves all.
#pragma once
#include <functional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/isa.h"
#include "common/layer.h"
#include "common/parallel.h"
#include "common/types.h"

struct CUstream_st;  // cudaStream_t

namespace fastcv {

template <class Params>
struct Variant {
  const char* name;
  Isa needs;
  // nullptr if the row can run these params, else one clause that says what it lacks ("needs groups == 1").
  const char* (*why_not)(const Params&);
  // Scratch bytes for these params on this many threads; nullptr for none.
  size_t (*workspace)(const Params&, int threads);
  void (*run)(const Params&, const Exec&);  // nullptr where its objects are not in this build (FASTCV_IF_LINKED)
  // Where the row can run but a later one is faster: one clause that says so, else nullptr. Obeyed unless forced.
  const char* (*slower)(const Params&) = nullptr;
  // Bytes of an operand in this row's own arrangement that a caller may keep between calls; nullptr for none.
  size_t (*kept)(const Params&) = nullptr;
  // Where the row can run but its results may be further off than the accuracy rule allows: one clause that says so,
  // else nullptr. Obeyed unless forced, by measured choices too.
  const char* (*inexact)(const Params&) = nullptr;
};

// Storage types that the objects of an instruction set have no kernels for (dispatch.h): a clause, or nullptr.
inline const char* storage_not_built(Isa isa, bool reference, DType dtype) {
  if (isa >= Isa::avx512) return dtype == DType::f64 ? "leaves float64 to AVX2" : nullptr;
#if defined(__x86_64__)
  if (isa == Isa::portable && !reference && (dtype == DType::f64 || dtype == DType::bf16 || dtype == DType::f16))
    return "takes float32 on x86-64";
#endif
  return nullptr;
}

// A CUDA kernel. Each launcher returns a CUDA error code, 0 for none; one that is not in this build is null. `cuda`
// works on GPU memory and `emulated` on CPU memory: the same source, run by csrc/emulator when it is forced for CPU
// tensors.
template <class Params>
struct GpuVariant {
  using Launcher = int (*)(const Params&, void* workspace, CUstream_st* stream);
  const char* name;
  const char* needs;  // the oldest architecture, "sm80"
  const char* (*why_not)(const Params&);
  size_t (*workspace)(const Params&);
  Launcher cuda, emulated;
};

// The two launchers of a row, from the name that both namespaces have. Headers declare them FASTCV_IF_LINKED: one whose
// objects are not in this build is a null pointer.
#define FASTCV_IF_LINKED [[gnu::weak]]
#define FASTCV_LAUNCHERS(launcher) &cuda::launcher, &emulated::launcher

// Whether a GPU of this compute capability (90 for 9.0) runs a kernel for `needs`: "sm80" is for that architecture and
// newer ones, "sm90a" for that one alone. Else lacks_architecture says so in one clause: "needs sm90a, have sm80".
bool has_architecture(const char* needs, int capability);
std::string lacks_architecture(const char* needs, int capability);

// What Python may ask of a table without knowing its params.
struct VariantInfo {
  const char* name;
  Isa isa;          // of a CPU variant
  const char* gpu;  // the architecture that a CUDA kernel needs; null for a CPU variant
};
const char* needs(const VariantInfo& info);

// Throws std::invalid_argument with the known names if `op` has no table.
std::vector<VariantInfo> variants(const std::string& op);
std::vector<std::string> variant_ops();

// Makes every later call of `op` take the row `name`; "" returns the choice to the table. Process-wide.
// Throws std::invalid_argument if there is no such row or this CPU cannot run it.
void force_variant(const std::string& op, const std::string& name);
std::string forced_variant(const std::string& op);

// While recording, every choice leaves one line per row: the row that was taken (reason ""), or why another was not.
struct Choice {
  std::string op, variant, reason;
};
void record_choices(bool on);
bool recording_choices();
void record_choice(Choice choice);
std::vector<Choice> take_recorded_choices();

// Measured choices (fastcv.tuned): the row that a layer takes in place of the table's own choice, unless one is forced.
// Process-wide, and empty until it is set.
struct TunedChoice {
  std::string op;
  std::vector<int64_t> layer;  // the numbers of a LayerKey
  std::string variant;
};
// What a layer of `op` is made of; empty where choices of `op` cannot be measured ones.
std::vector<LayerField> layer_fields(const std::string& op);
// Why this choice cannot be obeyed on this CPU, as a clause; "" if it can. Throws as `variants`.
std::string why_not_tuned(const TunedChoice& choice);
// Replaces all measured choices at once. Throws std::invalid_argument, and changes nothing, if one cannot be obeyed.
void set_tuned(const std::vector<TunedChoice>& choices);
std::vector<TunedChoice> tuned_choices();
bool any_tuned();
std::string tuned_variant(const char* op, const LayerKey& layer);  // "" for none
// While recording, every choice for a layer leaves one line here too.
void record_layer(const char* op, const LayerKey& layer, const char* variant);
std::vector<TunedChoice> take_recorded_layers();

// What the registry knows of a table. refuses: of a layer and a row that is in the table, why_not_tuned.
struct TableInfo {
  std::vector<VariantInfo> rows;
  std::vector<LayerField> layer;
  std::function<std::string(const LayerKey& layer, const std::string& row)> refuses;
};

// A table registers itself by a static object beside it.
struct RegisterVariants {
  RegisterVariants(const char* op, TableInfo table);
};

template <class Params>
class VariantTable {
 public:
  VariantTable(const char* op, std::span<const Variant<Params>> rows, std::span<const GpuVariant<Params>> gpu_rows = {})
      : op_(op), rows_(rows), gpu_rows_(gpu_rows), registered_(op, info()) {}
  VariantTable(const VariantTable&) = delete;  // the registry knows it by its address

  const char* op() const { return op_; }

  // The row to run. Throws std::invalid_argument if a forced row refuses the params; the last row must refuse none.
  const Variant<Params>& choose(const Params& params) const {
    const char* why = nullptr;
    const Variant<Params>* row = pick(params, &why);
    if (row == nullptr) refuse(forced_variant(op_), why);
    if (recording_choices()) record(params, *row);
    return *row;
  }

  // The row that choose takes, or null where it throws; leaves no record.
  const Variant<Params>* pick(const Params& params, const char** why = nullptr) const {
    const std::string forced = forced_variant(op_);
    if (forced.empty())
      if (const Variant<Params>* row = tuned(params)) return row;
    for (const auto& row : rows_) {
      if (row.run == nullptr || (!forced.empty() && forced != row.name)) continue;
      if (row.needs > cpu_isa()) continue;
      const char* refused = why_not(row, params);
      if (refused != nullptr && why != nullptr) *why = refused;
      if (refused != nullptr) continue;
      if (forced.empty() && unfit(row, params) != nullptr) continue;
      return &row;
    }
    return nullptr;
  }

  // The CUDA kernel to run for memory of a GPU of this compute capability. Throws std::invalid_argument if there is
  // none for these params.
  const GpuVariant<Params>& choose_on_gpu(const Params& params, int capability) const {
    const std::string forced = forced_variant(op_);
    std::string why;
    for (const auto& row : gpu_rows_) {
      if (row.cuda == nullptr || (!forced.empty() && forced != row.name)) continue;
      const char* refused = row.why_not == nullptr ? nullptr : row.why_not(params);
      const bool fits = has_architecture(row.needs, capability);
      if (refused != nullptr || !fits) {
        why = fits ? refused : lacks_architecture(row.needs, capability);
        continue;
      }
      if (recording_choices()) record(params, row, capability);
      return row;
    }
    refuse(forced, why.empty() ? nullptr : why.c_str());
  }

  // The CUDA kernel that is forced for a call on CPU memory, to be emulated; null if none is.
  const GpuVariant<Params>* forced_on_emulator(const Params& params) const {
    const std::string forced = forced_variant(op_);
    if (forced.empty()) return nullptr;
    for (const auto& row : gpu_rows_) {
      if (forced != row.name) continue;
      const char* why = row.why_not == nullptr ? nullptr : row.why_not(params);
      if (why == nullptr && row.emulated == nullptr) why = "it needs a CUDA tensor, or a build with FASTCV_EMULATOR=ON";
      if (why != nullptr) refuse(forced, why);
      if (recording_choices()) record(params, row, 0);
      return &row;
    }
    return nullptr;
  }

 private:
  const char* why_not(const Variant<Params>& row, const Params& params) const {
    const char* why = row.why_not == nullptr ? nullptr : row.why_not(params);
    if constexpr (requires { params.dtype; })
      if (why == nullptr) why = storage_not_built(row.needs, &row == &rows_.back(), params.dtype);
    return why;
  }
  // Why a row that can run the params is not taken of itself.
  const char* unfit(const Variant<Params>& row, const Params& params) const {
    const char* why = row.inexact == nullptr ? nullptr : row.inexact(params);
    return why != nullptr || row.slower == nullptr ? why : row.slower(params);
  }
  // Why the row may not be a measured choice for these params.
  std::string refuses(const Variant<Params>& row, const Params& params) const {
    if (row.needs > cpu_isa()) return std::string("needs ") + isa_name(row.needs) + ", have " + isa_name(cpu_isa());
    const char* why = why_not(row, params);
    if (why != nullptr) return why;
    why = row.inexact == nullptr ? nullptr : row.inexact(params);
    return why == nullptr ? "" : std::string("is less exact than the accuracy rule allows: it ") + why;
  }
  // The measured choice for the layer of these params; null if there is none.
  const Variant<Params>* tuned(const Params& params) const {
    if constexpr (HasLayer<Params>) {
      if (!any_tuned()) return nullptr;
      const std::string name = tuned_variant(op_, layer_key(params));
      for (const auto& row : rows_)
        if (name == row.name && refuses(row, params).empty()) return &row;
    }
    return nullptr;
  }
  TableInfo info() const {
    TableInfo info;
    for (const auto& row : rows_)
      if (row.run != nullptr) info.rows.push_back({row.name, row.needs, nullptr});
    for (const auto& row : gpu_rows_) info.rows.push_back({row.name, Isa::portable, row.needs});
    if constexpr (HasLayer<Params>) {
      ToFields visit;
      Params params{};
      Params::layer(params, visit);
      info.layer = visit.fields;
      info.refuses = [this](const LayerKey& layer, const std::string& name) -> std::string {
        Params params = Params::of_one_image();
        FromKey visit{layer};
        Params::layer(params, visit);
        for (const auto& row : rows_)
          if (name == row.name) return refuses(row, params);
        return "is a CUDA kernel, and choices are measured on the CPU";
      };
    }
    return info;
  }
  void record(const Params& params, const Variant<Params>& chosen) const {
    if constexpr (HasLayer<Params>) record_layer(op_, layer_key(params), chosen.name);
    const bool measured = forced_variant(op_).empty() && tuned(params) == &chosen;
    bool before = true;
    for (const auto& row : rows_) {
      if (row.run == nullptr) continue;
      const char* why = why_not(row, params);
      std::string reason;
      if (&row == &chosen) before = false;
      else if (row.needs > cpu_isa())
        reason = std::string("needs ") + isa_name(row.needs) + ", have " + isa_name(cpu_isa());
      else if (why != nullptr) reason = why;
      else if (unfit(row, params) != nullptr) reason = unfit(row, params);
      else if (measured) reason = std::string("fastcv.tuned takes ") + chosen.name;
      else reason = before ? "another variant is forced" : std::string("comes after ") + chosen.name;
      record_choice({op_, row.name, reason});
    }
    for (const auto& row : gpu_rows_) {
      const char* why = row.why_not == nullptr ? nullptr : row.why_not(params);
      record_choice({op_, row.name,
                     why != nullptr            ? why
                     : row.emulated == nullptr ? "needs a CUDA tensor"
                                               : "a CUDA kernel, on the emulator only where it is forced"});
    }
  }
  // capability: of the GPU; 0 for the emulator, which runs them all.
  void record(const Params& params, const GpuVariant<Params>& chosen, int capability) const {
    for (const auto& row : rows_) record_choice({op_, row.name, "needs a CPU tensor"});
    bool before = true;
    for (const auto& row : gpu_rows_) {
      const char* why = row.why_not == nullptr ? nullptr : row.why_not(params);
      const bool fits = capability == 0 || has_architecture(row.needs, capability);
      if (&row == &chosen) before = false;
      record_choice({op_, row.name,
                     &row == &chosen  ? ""
                     : !fits          ? lacks_architecture(row.needs, capability)
                     : why != nullptr ? why
                     : before         ? "another variant is forced"
                                      : std::string("comes after ") + chosen.name});
    }
  }
  [[noreturn]] void refuse(const std::string& forced, const char* why) const {
    throw std::invalid_argument(std::string(op_) + ": variant " + (forced.empty() ? "(any)" : forced) +
                                " cannot run this call: " + (why == nullptr ? "no row" : why));
  }

  const char* op_;
  std::span<const Variant<Params>> rows_;
  std::span<const GpuVariant<Params>> gpu_rows_;
  RegisterVariants registered_;
};

}  // namespace fastcv
