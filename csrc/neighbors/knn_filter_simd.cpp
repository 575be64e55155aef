#include "neighbors/knn_filter_lanes.h"

namespace fastcv::FASTCV_ISA {

void knn_filter(const KnnParams& p, const Exec& exec) { run_filter<FloatProduct>(p, exec, &knn, &knn_workspace); }
size_t knn_filter_workspace(const KnnParams& p, int threads) {
  return FilterPlan<FloatProduct>::bytes(p, threads, &knn_workspace);
}

}  // namespace fastcv::FASTCV_ISA
