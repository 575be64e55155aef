#include "common/door.h"
#include "emulator/emulator.h"
#include "layout/transpose.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <utility>

#if FASTCV_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace fastcv::door {

std::ostream& operator<<(std::ostream& out, Shown shown) {
  out << '[';
  for (size_t i = 0; i < shown.values.size(); ++i) out << (i ? ", " : "") << shown.values[i];
  return out << ']';
}

Ints dense_strides(const Ints& sizes, bool channels_last) {
  const int n = static_cast<int>(sizes.size());
  Ints strides(n);
  int64_t next = 1;
  const auto place = [&](int d) {
    strides[d] = next;
    next *= sizes[d] > 1 ? sizes[d] : 1;
  };
  if (channels_last && n >= 3) {
    place(1);
    for (int d = n - 1; d >= 2; --d) place(d);
    place(0);
  } else {
    for (int d = n - 1; d >= 0; --d) place(d);
  }
  return strides;
}

template <class Sizes, class Strides>
static bool strides_say_channels_last(const Sizes& size, const Strides& stride) {
  const int n = static_cast<int>(size.size());
  if (n != 4 && n != 5) return false;
  if (stride[1] == 0) return false;
  int64_t least = 0;
  const auto admits = [&](int d) {
    if (size[d] == 0) return false;
    if (stride[d] < least) return false;
    if (d == 0 && least == stride[1]) return false;
    least = stride[d];
    if (size[d] > 1) least *= size[d];
    return true;
  };
  if (!admits(1)) return false;
  for (int d = n - 1; d >= 2; --d)
    if (!admits(d)) return false;
  return admits(0);
}

bool is_channels_last(const Tensor& t) { return strides_say_channels_last(t.sizes(), t.strides()); }
bool is_channels_last(const Ints& sizes, const Ints& strides) { return strides_say_channels_last(sizes, strides); }

bool is_dense(const Tensor& t, bool channels_last) {
  const auto size = t.sizes(), stride = t.strides();
  const int n = static_cast<int>(size.size());
  int64_t next = 1;  // as in dense_strides
  const auto in_place = [&](int d) {
    if (size[d] <= 1) return true;
    const bool ok = stride[d] == next;
    next *= size[d];
    return ok;
  };
  const bool channels_inside = channels_last && n >= 3;
  if (channels_inside && !in_place(1)) return false;
  for (int d = n - 1; d >= 0; --d)
    if (!(channels_inside && d == 1) && !in_place(d)) return false;
  return true;
}

DType dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Byte:
      return DType::u8;
    case ScalarType::Long:
      return DType::i64;
    default:
      throw std::runtime_error(std::string("fastcv ") + what + ": dtype " + dtype_name(t.scalar_type()) +
                               " has no kernel");
  }
}

ScalarType scalar_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ScalarType::Float;
    case DType::f64:
      return ScalarType::Double;
    case DType::bf16:
      return ScalarType::BFloat16;
    case DType::f16:
      return ScalarType::Half;
    case DType::u8:
      return ScalarType::Byte;
    case DType::i64:
      return ScalarType::Long;
  }
  throw std::logic_error("fastcv: unknown DType");
}

const char* dtype_name(ScalarType type) { return torch::headeronly::toString(type); }

namespace {

// A fresh page of 4 KB costs the kernel that first writes to it more than the writing does; the allocator gives fresh
// pages for everything above 32 MB, and below that whenever it has given the last ones back. So large results are
// asked for in pages of 2 MB, where the system has left that to programs (transparent_hugepage: madvise).
void prefer_huge_pages(const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = 2 << 20;
  static const bool wanted = [] {
    const char* off = std::getenv("FASTCV_HUGE_PAGES");
    return off == nullptr || std::string(off) != "0";
  }();
  const int64_t bytes = t.numel() * static_cast<int64_t>(t.element_size());
  if (!wanted || bytes < static_cast<int64_t>(2 * kHuge)) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t begin = (data + kHuge - 1) / kHuge * kHuge, end = (data + bytes) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: may be refused
#else
  (void)t;
#endif
}

}  // namespace

Tensor empty_strided(const Ints& sizes, const Ints& strides, ScalarType dtype, const Tensor& like) {
  int32_t device_type, device_index, code;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), code, device_type, device_index, &handle));
  Tensor result(handle);
  int64_t elements = 1;
  for (const int64_t size : sizes) elements *= size;
  if (elements >= (1 << 19) && device_type == aoti_torch_device_type_cpu()) prefer_huge_pages(result);
  return result;
}

namespace {
struct HiddenCopies {
  std::mutex mutex;
  std::vector<HiddenCopy> made;
};
HiddenCopies& hidden_copies() {
  static HiddenCopies copies;
  return copies;
}
}  // namespace

namespace {

// Fills `copy`, which is dense in the layout channels_last. From the other dense layout, on the CPU, by our own kernel:
// torch's takes up to ten times as long.
void fill_dense(Tensor& copy, const Tensor& t, bool channels_last) {
  const auto type = t.scalar_type();
  const bool fits =
      t.element_size() <= 8 && (t.element_size() != 2 || type == ScalarType::BFloat16 || type == ScalarType::Half);
  if (t.is_cuda() || t.dim() < 3 || t.numel() == 0 || !fits || !is_dense(t, !channels_last)) {
    torch::stable::copy_(copy, t);
    return;
  }
  const int64_t images = t.size(0), channels = t.size(1), positions = t.numel() / (images * channels);
  const int64_t bytes = static_cast<int64_t>(t.element_size());
  const TransposeParams p = channels_last
                                ? TransposeParams{t.data_ptr(), copy.data_ptr(), images, channels, positions, bytes}
                                : TransposeParams{t.data_ptr(), copy.data_ptr(), images, positions, channels, bytes};
  run_row(*transpose_table.pick(p), p, t);
}

}  // namespace

Tensor dense_copy(const Tensor& t, bool channels_last) {
  Tensor copy = empty(sizes(t), t.scalar_type(), t, channels_last);
  if (!recording_choices()) {
    fill_dense(copy, t, channels_last);
    return copy;
  }
  const auto start = std::chrono::steady_clock::now();
  fill_dense(copy, t, channels_last);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  const std::lock_guard lock(hidden_copies().mutex);
  hidden_copies().made.push_back({2 * t.numel() * static_cast<int64_t>(t.element_size()), channels_last, time.count()});
  return copy;
}

Tensor as_dense(const Tensor& t, bool channels_last) {
  return is_dense(t, channels_last) ? t : dense_copy(t, channels_last);
}

std::vector<HiddenCopy> take_hidden_copies() {
  const std::lock_guard lock(hidden_copies().mutex);
  return std::exchange(hidden_copies().made, {});
}

void check_same_device(const char* op, std::initializer_list<const Tensor*> tensors) {
  const Tensor* first = nullptr;
  for (const Tensor* t : tensors) {
    if (t == nullptr) continue;
    if (first == nullptr) first = t;
    check(t->is_cuda() == first->is_cuda() && t->get_device_index() == first->get_device_index(), op,
          ": expected all tensors on one device, got ", first->is_cuda() ? "cuda" : "cpu", " and ",
          t->is_cuda() ? "cuda" : "cpu");
  }
}

void torch_parallel(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, grain, body, context));
}

thread_local FloatControl callers_float_control = 0;

void torch_parallel_flushing(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  struct Inner {
    void (*body)(int64_t, int64_t, void*);
    void* context;
  } inner{body, context};
  constexpr auto flushed = [](int64_t begin, int64_t end, void* given) {
    const FloatControlScope scope(float_control() | kFlushDenormals);
    const Inner& inner = *static_cast<Inner*>(given);
    inner.body(begin, end, inner.context);
  };
  // A thread that torch starts for this inherits the setting of the thread that starts it, for good.
  const FloatControlScope scope(callers_float_control);
  torch_parallel(n, grain, flushed, &inner);
}

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

std::optional<Tensor> scratch(size_t bytes, const Tensor& like, void*& aligned) {
  constexpr uintptr_t kAlignment = 256;
  if (bytes == 0) return std::nullopt;
  Tensor memory = empty({static_cast<int64_t>(bytes + kAlignment - 1)}, ScalarType::Byte, like);
  aligned =
      reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data_ptr()) + kAlignment - 1) & ~(kAlignment - 1));
  return memory;
}

CUstream_st* current_stream(const Tensor& t) {
#if FASTCV_WITH_CUDA
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<CUstream_st*>(stream);
#else
  (void)t;
  throw std::runtime_error("this build of fastcv has no CUDA");
#endif
}

int capability(const Tensor& t) {
#if FASTCV_WITH_CUDA
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];
  const int device = t.get_device_index();
  int found = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (found != 0) return found;
  int major = 0, minor = 0;
  cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  check(error == cudaSuccess, "cannot ask GPU ", device, " for its compute capability: ", cudaGetErrorString(error));
  found = 10 * major + minor;
  if (device < kDevices) known[device].store(found, std::memory_order_relaxed);
  return found;
#else
  (void)t;
  throw std::runtime_error("this build of fastcv has no CUDA");
#endif
}

void check_launch(int error, const char* op, const char* variant, bool emulated) {
  if (error == 0) return;
  std::string words = "CUDA error " + std::to_string(error);
#if FASTCV_WITH_CUDA
  if (!emulated) words = cudaGetErrorString(static_cast<cudaError_t>(error));
#endif
  if (emulated) words = emulator::last_error();
  check(false, op, ": variant ", variant, " failed: ", words);
}

}  // namespace fastcv::door
