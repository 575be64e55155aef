// Pooling of small row-major maps: blocks of planes are turned into channels, pooled as such, and turned back.
//
// Rows of a small map fill no vector, and where its windows lie costs more than what they hold. The planes of a block
// share that: a vector is one pixel of as many planes.
#include "pool/pool.h"

#include "layout/transpose.h"
#include "pool/pool_simd.h"

namespace fastcv::FASTCV_ISA {
namespace {

template <class Pool>
void by_planes(const PoolParams& p, const Exec& exec, bool backward, Pool pool) {
  const PlaneBlock block = plane_block(p, backward);
  const int64_t planes = p.n * p.c, blocks = (planes + block.planes - 1) / block.planes;
  parallel_slots(exec, blocks, rows_grain(block.planes * block.x.map), [&](int slot, int64_t begin, int64_t end) {
    char* const base = static_cast<char*>(exec.workspace) + slot * block.size;
    const Exec alone{exec.parallel, 1, nullptr};
    PoolParams q = p;
    q.n = 1;
    q.channels_last = true;
    q.x = base + block.x.at;
    q.y = base + block.y.at;
    q.where = p.where == nullptr ? nullptr : base + block.where.at;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * block.planes;
      q.c = min64(block.planes, planes - first);
      // Between the planes of the map from `first` on and the pixels of the block.
      const auto in = [&](const void* map, const PlaneBlock::Operand& o) {
        const char* from = static_cast<const char*>(map) + first * o.map * o.bytes;
        if (o.map > 0) transpose_images({from, base + o.at, 1, q.c, o.map, o.bytes}, alone);
      };
      const auto out = [&](void* map, const PlaneBlock::Operand& o) {
        char* to = static_cast<char*>(map) + first * o.map * o.bytes;
        if (o.map > 0) transpose_images({base + o.at, to, 1, o.map, q.c, o.bytes}, alone);
      };
      in(p.x, block.x);
      if (backward) in(p.where, block.where);
      pool(q, alone);
      out(p.y, block.y);
      if (!backward) out(p.where, block.where);
    }
  });
}

}  // namespace

void max_pool2d_planes(const PoolParams& p, const Exec& exec) { by_planes(p, exec, false, max_pool2d_nhwc); }
void max_pool2d_backward_planes(const PoolParams& p, const Exec& exec) {
  by_planes(p, exec, true, max_pool2d_backward_nhwc);
}
void avg_pool2d_planes(const PoolParams& p, const Exec& exec) { by_planes(p, exec, false, avg_pool2d_nhwc); }
void avg_pool2d_backward_planes(const PoolParams& p, const Exec& exec) {
  by_planes(p, exec, true, avg_pool2d_backward_nhwc);
}

}  // namespace fastcv::FASTCV_ISA
