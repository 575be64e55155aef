#include "neighbors/knn_filter_lanes.h"

namespace fastcv::FASTCV_ISA {

void knn_filter(const KnnParams& p, const Exec& exec) {
  run_filter<Bf16Product>(p, exec, &avx512::knn, &avx512::knn_workspace);
}
size_t knn_filter_workspace(const KnnParams& p, int threads) {
  return FilterPlan<Bf16Product>::bytes(p, threads, &avx512::knn_workspace);
}

}  // namespace fastcv::FASTCV_ISA
