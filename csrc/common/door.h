// What every door (*_torch.cpp) needs: tensors to plain values, outputs, scratch memory, threads, streams.
// The only header of common/ that sees torch; kernels never include it.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/denormals.h"
#include "common/parallel.h"
#include "common/types.h"
#include "common/variant.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name up to torch 2.11
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace fastcv::door {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::headeronly::ScalarType;
using Ints = std::vector<int64_t>;

// Sizes and layout ------------------------------------------------------------------------------------------------

inline Ints sizes(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }
inline Ints strides(const Tensor& t) { return {t.strides().begin(), t.strides().end()}; }
// For messages: writes "[2, 3, 8, 8]", but only where check fails, so that the usual call pays nothing for its words.
struct Shown {
  std::span<const int64_t> values;
};
std::ostream& operator<<(std::ostream& out, Shown shown);
inline Shown show(std::span<const int64_t> values) { return {values}; }
inline Shown show(std::initializer_list<int64_t> values) { return {{values.begin(), values.size()}}; }
inline Shown show(const Tensor& t) { return {{t.sizes().begin(), t.sizes().end()}}; }

// Row-major strides, or with the channel (dim 1) innermost where channels_last is set (3 to 5 dimensions).
Ints dense_strides(const Ints& sizes, bool channels_last);
// torch's rule for the layout of an output: does this tensor of 4 or 5 dimensions count as channels_last?
// Ambiguous strides (sizes of one) fall to row-major unless they say otherwise, exactly as suggest_memory_format.
bool is_channels_last(const Tensor& t);
bool is_channels_last(const Ints& sizes, const Ints& strides);
// Every element once, without gaps, in row-major (or channels_last) order.
bool is_dense(const Tensor& t, bool channels_last);

// Dtypes ----------------------------------------------------------------------------------------------------------

// Throws for a dtype that has no fastcv kernel; `what` names the op in the message.
DType dtype_of(const Tensor& t, const char* what);
ScalarType scalar_type(DType dtype);
const char* dtype_name(ScalarType type);

// Outputs and scratch ---------------------------------------------------------------------------------------------

// On the CPU large ones ask for pages of 2 MB; FASTCV_HUGE_PAGES=0 leaves that to the system.
Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType dtype, const Tensor& like);
inline Tensor empty(const Ints& sizes, ScalarType dtype, const Tensor& like, bool channels_last = false) {
  return empty_strided(sizes, dense_strides(sizes, channels_last), dtype, like);
}
// A row-major (or channels_last) tensor with t's values: t itself where it already is one.
Tensor as_dense(const Tensor& t, bool channels_last = false);
// The same, and never t itself.
Tensor dense_copy(const Tensor& t, bool channels_last);

// The copies that as_dense made while choices were recorded (common/variant.h): what a caller cannot see otherwise.
struct HiddenCopy {
  int64_t bytes;  // read and written
  bool channels_last;
  double seconds;
};
std::vector<HiddenCopy> take_hidden_copies();

// Throws std::runtime_error with the parts joined: one clear sentence, without torch's file-and-line prefix.
// A safety net behind the Python layer, which raises torch's own error types.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  message << "fastcv ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}
void check_same_device(const char* op, std::initializer_list<const Tensor*> tensors);

// Running a variant -------------------------------------------------------------------------------------------

// torch's own threads: torch.set_num_threads is obeyed, and a nested call runs serially.
void torch_parallel(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
// The same for kernels that flush denormals: in every thread, while it works for the body.
void torch_parallel_flushing(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
// The setting of this thread outside the kernel that it runs.
extern thread_local FloatControl callers_float_control;
int torch_threads();

// `bytes` of scratch on like's device, aligned as every kernel may expect; the memory is the tensor's.
std::optional<Tensor> scratch(size_t bytes, const Tensor& like, void*& aligned);
// The current stream of t's device.
CUstream_st* current_stream(const Tensor& t);
// The compute capability of t's GPU: 90 for 9.0. Asked once per device.
int capability(const Tensor& t);
// Throws if a launcher returned an error; names op and variant. `emulated`: the emulator has the error's words.
void check_launch(int error, const char* op, const char* variant, bool emulated);

template <class Params>
void launch_variant(const char* op, const GpuVariant<Params>& row, typename GpuVariant<Params>::Launcher launcher,
                    const Params& params, const Tensor& like, CUstream_st* stream) {
  std::optional<torch::stable::accelerator::DeviceGuard> guard;
  if (like.is_cuda()) guard.emplace(like.get_device_index());
  void* workspace = nullptr;
  const auto memory = scratch(row.workspace == nullptr ? 0 : row.workspace(params), like, workspace);
  check_launch(launcher(params, workspace, stream), op, row.name, !like.is_cuda());
}

// Runs a CPU row on torch's threads, with scratch from torch.
template <class Params>
void run_row(const Variant<Params>& row, const Params& params, const Tensor& like,
             Denormals denormals = Denormals::keep) {
  const bool flush = denormals == Denormals::flush;
  Exec exec{flush ? &torch_parallel_flushing : &torch_parallel, torch_threads(), nullptr};
  const size_t bytes = row.workspace == nullptr ? 0 : row.workspace(params, exec.threads);
  const auto memory = scratch(bytes, like, exec.workspace);
  callers_float_control = float_control();
  const FloatControlScope scope(callers_float_control | (flush ? kFlushDenormals : 0));
  row.run(params, exec);
}

// Chooses a row for the params, allocates its scratch through torch and runs it.
// For tensors on CUDA: chooses a CUDA row and launches it on the current stream of their device; such rows keep
// denormals.
template <class Params>
void run_variant(const VariantTable<Params>& table, const Params& params, const Tensor& like,
                 Denormals denormals = Denormals::keep) {
  if (like.is_cuda()) {
    const GpuVariant<Params>& row = table.choose_on_gpu(params, capability(like));
    return launch_variant(table.op(), row, row.cuda, params, like, current_stream(like));
  }
  if (const GpuVariant<Params>* row = table.forced_on_emulator(params))
    return launch_variant(table.op(), *row, row->emulated, params, like, nullptr);
  run_row(table.choose(params), params, like, denormals);
}

}  // namespace fastcv::door

// FASTCV_IMPL(m) { m.impl(...); }: the op's implementations, which serve both devices.
#if FASTCV_WITH_CUDA
#define FASTCV_IMPL_CUDA(m) \
  STABLE_TORCH_LIBRARY_IMPL(fastcv, CUDA, m) { fastcv_implement(m); }
#else
#define FASTCV_IMPL_CUDA(m)
#endif
#define FASTCV_IMPL(m)                                                   \
  static void fastcv_implement(torch::stable::detail::StableLibrary& m); \
  STABLE_TORCH_LIBRARY_IMPL(fastcv, CPU, m) { fastcv_implement(m); }     \
  FASTCV_IMPL_CUDA(m)                                                    \
  static void fastcv_implement(torch::stable::detail::StableLibrary& m)
