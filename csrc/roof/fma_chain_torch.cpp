// The door of fma_chain: schema, checks, output. No arithmetic on elements.
#include "roof/fma_chain.h"

#include "common/door.h"

namespace fastcv {
namespace {

using namespace door;

Tensor fma_chain_cpu(const Tensor& input, int64_t steps) {
  const DType dtype = dtype_of(input, "fma_chain");
  check(dtype <= DType::f64, "fma_chain: expected float32 or float64, got ", dtype_name(input.scalar_type()));
  check(steps >= 0, "fma_chain: steps must not be negative, got ", steps);
  const Tensor x = as_dense(input);
  Tensor output = empty(sizes(input), input.scalar_type(), input, false);
  const FmaChainParams p{x.data_ptr(), output.data_ptr(), x.numel(), steps, dtype};
  run_variant(fma_chain_table, p, input);
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) { m.def("fma_chain(Tensor input, int steps) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(fastcv, CPU, m) { m.impl("fma_chain", TORCH_BOX(&fma_chain_cpu)); }

}  // namespace fastcv
