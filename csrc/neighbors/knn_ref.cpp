#include "neighbors/knn.h"

#include <algorithm>
#include <vector>

#include "neighbors/scalar_ref.h"

namespace fastcv {

void knn_ref(const KnnParams& p, const Exec&) {
  using namespace neighbors_ref;
  std::vector<double> sums(p.n);
  std::vector<int64_t> order(p.n);
  const auto closer = [&](int64_t a, int64_t b) {
    const bool a_nan = sums[a] != sums[a], b_nan = sums[b] != sums[b];
    if (a_nan || b_nan) return a_nan == b_nan ? a < b : b_nan;
    return sums[a] != sums[b] ? sums[a] < sums[b] : a < b;
  };
  dispatch(p.dtype, [&](auto zero) {
    using S = decltype(zero);
    dispatch(p.out_dtype, [&](auto out_zero) {
      using Out = decltype(out_zero);
      if constexpr (!std::is_same_v<Out, uint8_t>)
        for (int64_t q = 0; q < p.batch * p.m; ++q) {
          const int64_t b = q / p.m;
          const S* x = static_cast<const S*>(p.x) + b * p.x_batch + q % p.m * p.depth;
          for (int64_t j = 0; j < p.n; ++j) {
            sums[j] = distance_sum(x, static_cast<const S*>(p.y) + b * p.y_batch + j * p.depth, p.depth, p.p);
            order[j] = j;
          }
          std::sort(order.begin(), order.end(), closer);
          for (int64_t i = 0; i < p.k_out; ++i) {
            const double sum = i < p.k ? sums[order[i]] : INFINITY;
            narrow(p.squared || i >= p.k ? sum : root(sum, p.p), static_cast<Out*>(p.distances) + q * p.k_out + i);
            p.indices[q * p.k_out + i] = i < p.k ? order[i] : -1;
          }
        }
    });
  });
}

}  // namespace fastcv
