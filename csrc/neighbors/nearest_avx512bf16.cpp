#include "neighbors/nearest_lanes.h"

namespace fastcv::FASTCV_ISA {

void nearest(const KnnParams& p, const Exec& exec) {
  run_nearest<Bf16Product>(p, exec, &avx512::knn, &avx512::knn_workspace);
}
size_t nearest_workspace(const KnnParams& p, int threads) {
  return threads * NearestPlan<Bf16Product>(p, threads, &avx512::knn_workspace).slot_bytes();
}

}  // namespace fastcv::FASTCV_ISA
