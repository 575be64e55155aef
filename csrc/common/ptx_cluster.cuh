// What the blocks of a cluster do with each other's barriers and tiles (sm_90 on), with two bodies as in ptx_sm90.cuh.
//
//   barrier_arrive_at(b, rank)          an arrival at the barrier that lies there in the shared memory of block `rank`
//   barrier_wait_cluster(b, parity)     barrier_wait on a barrier of this block at which other blocks arrive
//   copy_tile_3d_multicast(to, map, x, y, z, b, ranks)   copy_tile_3d to the same place of every block whose bit is set
//                                       in `ranks`; the bytes count at that block's own barrier b
// A block must not begin before all have initialised their barriers, nor end before the others are done with its
// memory: cluster_sync() at both ends.
#pragma once
#include "common/ptx_sm90.cuh"

namespace fastcv::FASTCV_GPU {

#if FASTCV_EMULATOR

inline void barrier_arrive_at(Shared<uint64_t> b, unsigned rank, Where where = Where::current()) {
  barrier_arrive(cluster_shared(b, rank), where);
}
inline void barrier_wait_cluster(Shared<uint64_t> b, uint32_t parity, Where where = Where::current()) {
  barrier_wait(b, parity, where);
}
template <class T>
void copy_tile_3d_multicast(Shared<T> to, const TensorMap& map, int x, int y, int z, Shared<uint64_t> b, unsigned ranks,
                            Where where = Where::current()) {
  for (unsigned rank = 0; ranks >> rank != 0; ++rank)
    if (ranks >> rank & 1) copy_tile_3d(cluster_shared(to, rank), map, x, y, z, cluster_shared(b, rank), where);
}

#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void barrier_arrive_at(uint64_t* b, unsigned rank) {
  asm volatile(
      "{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; "
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];}" ::"r"(shared_address(b)),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void barrier_wait_cluster(uint64_t* b, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{.reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(ended)
        : "r"(shared_address(b)), "r"(parity)
        : "memory");
  } while (ended == 0);
}
template <class T>
__device__ __forceinline__ void copy_tile_3d_multicast(T* to, const TensorMap& map, int x, int y, int z, uint64_t* b,
                                                       unsigned ranks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(b)), "h"(static_cast<uint16_t>(ranks))
      : "memory");
}

#else  // kernels return before they come here

__device__ __forceinline__ void barrier_arrive_at(uint64_t*, unsigned) {}
__device__ __forceinline__ void barrier_wait_cluster(uint64_t*, uint32_t) {}
template <class T>
__device__ __forceinline__ void copy_tile_3d_multicast(T*, const TensorMap&, int, int, int, uint64_t*, unsigned) {}

#endif

}  // namespace fastcv::FASTCV_GPU
