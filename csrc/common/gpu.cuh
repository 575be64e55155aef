// The seam between a kernel and what runs it: nvcc and a GPU, or g++ and the emulator (csrc/emulator). A .cu file is
// compiled by both; FASTCV_GPU names the namespace, cuda or emulated. Only this header and ptx.cuh know which it is.
//
//   launch(kernel, grid, block, shared_bytes, stream, args...)   an error code, 0 for none
//   FASTCV_SHARED(T, name, n)        n elements of shared memory;  FASTCV_DYNAMIC_SHARED(T, name): the dynamic part
//   Shared<T>                        a pointer into shared memory: T* on a GPU, a checked one on the emulator
//   load_shared<Pack>, store_shared  several elements in one access
//   launch_clusters(kernel, grid, cluster, block, ...)   so many blocks in a row run together; where has_clusters()
//   cluster_rank(), cluster_sync()   in a cluster;  cluster_shared(p, rank): p in the shared memory of its block `rank`
#pragma once
#include <cstdint>
#include <utility>

#if FASTCV_EMULATOR
#include "emulator/cuda.h"
#else
#include <cuda_runtime.h>
#endif

#include "common/types.h"

namespace fastcv::FASTCV_GPU {

// n elements that move in one access of up to 16 bytes.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T at[n];
};

template <class P, class T>
__device__ __forceinline__ P load_pack(const T* from) {
  return *reinterpret_cast<const P*>(from);
}

#if FASTCV_EMULATOR

template <class T>
using Shared = emulator::Shared<T>;
using Where = std::source_location;

#define FASTCV_SHARED(T, name, n) \
  const Shared<T> name(           \
      reinterpret_cast<T*>(::fastcv::emulator::shared_array(sizeof(T) * (n), 16, std::source_location::current())))
#define FASTCV_DYNAMIC_SHARED(T, name) const Shared<T> name(reinterpret_cast<T*>(::fastcv::emulator::dynamic_shared()))

template <class P, class T>
P load_shared(Shared<T> from, Where where = Where::current()) {
  emulator::touch(reinterpret_cast<const std::byte*>(from.unchecked()), sizeof(P), emulator::Access::read, where);
  return *reinterpret_cast<const P*>(from.unchecked());
}
template <class P, class T>
void store_shared(Shared<T> to, const P& pack, Where where = Where::current()) {
  emulator::touch(reinterpret_cast<const std::byte*>(to.unchecked()), sizeof(P), emulator::Access::write, where);
  *reinterpret_cast<P*>(to.unchecked()) = pack;
}
// T* to the same bytes, for a pass whose elements are of another type.
template <class To, class T>
Shared<To> shared_cast(Shared<T> from) {
  return Shared<To>(reinterpret_cast<To*>(from.unchecked()));
}

template <class... Formal, class... Actual>
int launch_clusters(void (*kernel)(Formal...), dim3 grid, unsigned cluster, dim3 block, size_t shared_bytes,
                    cudaStream_t, Actual&&... args) {
  return emulator::launch(grid, block, shared_bytes, [&] { kernel(static_cast<Formal>(args)...); }, cluster);
}
inline bool has_clusters() { return true; }
inline unsigned cluster_rank() { return emulator::self().rank; }
inline void cluster_sync(Where where = Where::current()) { emulator::cluster_barrier(where); }
template <class T>
Shared<T> cluster_shared(Shared<T> mine, unsigned rank) {
  return Shared<T>(
      reinterpret_cast<T*>(emulator::shared_of(reinterpret_cast<const std::byte*>(mine.unchecked()), rank)));
}

#else

template <class T>
using Shared = T*;

#define FASTCV_SHARED(T, name, n) __shared__ __align__(16) T name[n]
#define FASTCV_DYNAMIC_SHARED(T, name)                                     \
  extern __shared__ __align__(1024) unsigned char fastcv_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(fastcv_dynamic_shared)

template <class P, class T>
__device__ __forceinline__ P load_shared(const T* from) {
  return load_pack<P>(from);
}
template <class P, class T>
__device__ __forceinline__ void store_shared(T* to, const P& pack) {
  *reinterpret_cast<P*>(to) = pack;
}
template <class To, class T>
__device__ __forceinline__ To* shared_cast(T* from) {
  return reinterpret_cast<To*>(from);
}

template <class... Formal, class... Actual>
int launch_clusters(void (*kernel)(Formal...), dim3 grid, unsigned cluster, dim3 block, size_t shared_bytes,
                    cudaStream_t stream, Actual&&... args) {
  constexpr size_t kWithoutAsking = 24 << 10;  // of 48 KB, which static arrays share
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute in_clusters{};
  in_clusters.id = cudaLaunchAttributeClusterDimension;
  in_clusters.val.clusterDim.x = cluster;
  in_clusters.val.clusterDim.y = in_clusters.val.clusterDim.z = 1;
  config.attrs = &in_clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Formal>(args)...);
}
inline bool has_clusters() {
  int device = 0, yes = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&yes, cudaDevAttrClusterLaunch, device) == cudaSuccess && yes != 0;
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned cluster_rank() { return __clusterRelativeBlockRank(); }
__device__ __forceinline__ void cluster_sync() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}
template <class T>
__device__ __forceinline__ T* cluster_shared(T* mine, unsigned rank) {
  return static_cast<T*>(__cluster_map_shared_rank(mine, rank));
}
#else  // has_clusters() is false there, and no kernel is launched that comes here
__device__ __forceinline__ unsigned cluster_rank() { return 0; }
__device__ __forceinline__ void cluster_sync() { __trap(); }
template <class T>
__device__ __forceinline__ T* cluster_shared(T* mine, unsigned) {
  return mine;
}
#endif

#endif

template <class... Formal, class... Actual>
int launch(void (*kernel)(Formal...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
           Actual&&... args) {
  return launch_clusters(kernel, grid, 1, block, shared_bytes, stream, std::forward<Actual>(args)...);
}

// Thread numbering of grid-stride kernels.
__device__ inline int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }
// Blocks for n elements, `each` per block, capped: the kernel strides over the rest.
inline unsigned grid_for(int64_t n, int each) {
  constexpr int64_t kMaxBlocks = 1 << 16;
  const int64_t blocks = (n + each - 1) / each;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kMaxBlocks ? blocks : kMaxBlocks);
}

}  // namespace fastcv::FASTCV_GPU
