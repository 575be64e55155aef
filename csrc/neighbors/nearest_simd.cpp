#include "neighbors/nearest_lanes.h"

namespace fastcv::FASTCV_ISA {

void nearest(const KnnParams& p, const Exec& exec) { run_nearest<FloatProduct>(p, exec, &knn, &knn_workspace); }
size_t nearest_workspace(const KnnParams& p, int threads) {
  return threads * NearestPlan<FloatProduct>(p, threads, &knn_workspace).slot_bytes();
}

}  // namespace fastcv::FASTCV_ISA
