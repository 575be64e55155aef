// Convolution on AMX tiles: bfloat16; float16 as two bfloat16 parts; float32 as one, two or three, by its precision.
//
// Largest error against float64, relative to the largest output: two parts 5e-6 where float32 arithmetic has 1e-6 to
// 4e-6; three parts no more than float32 arithmetic. Parts below 2^-126 count as zeros, so a number errs by less than
// 2^-126, as wherever denormals are flushed; from 2^-102 down that leaves it fewer than float32's 24 bits.
#include "conv/conv.h"
#include "conv/conv_amx.h"
#include "conv/conv_igemm.h"
#include "conv/conv_pointwise.h"

namespace fastcv::FASTCV_ISA {
namespace {

// Where a pixel makes a pixel, those of all channels_last images are one image's: they fill tiles and chunks better.
ConvParams joined(ConvParams p) {
  for (int i = 0; i < 3; ++i)
    if (!p.channels_last || p.kernel[i] != 1 || p.stride[i] != 1 || p.pad[i] != 0 || p.in[i] != p.out[i]) return p;
  p.in[1] = p.out[1] = p.n * p.in[0] * p.in[1];
  p.n = p.in[0] = p.out[0] = 1;
  return p;
}

// f of the kernel: parts of numbers that each make one pixel are multiplied in an order of their own.
template <int Parts, class S, class F>
auto with_kernel(const ConvParams& p, int threads, F&& f) {
  const ConvParams layer = joined(p);
  if constexpr (Parts > 1)
    if (Pointwise<TileProduct<Parts>, S>::fits(layer)) return f(Pointwise<TileProduct<Parts>, S>(layer, threads));
  return f(Igemm<TileProduct<Parts>, S>(layer, threads));
}

template <int Parts, class S>
size_t workspace(const ConvParams& p, int threads) {
  return with_kernel<Parts, S>(p, threads, [](const auto& kernel) { return kernel.workspace(); });
}
template <int Parts, class S>
size_t kept(const ConvParams& p) {
  return Igemm<TileProduct<Parts>, S>(p, 1).kept();
}
template <int Parts, class S>
void run(const ConvParams& p, const Exec& exec) {
  with_kernel<Parts, S>(p, exec.threads, [&](auto&& kernel) { kernel.run(exec); });
}

}  // namespace

void conv_igemm_bf16(const ConvParams& p, const Exec& exec) {
  p.dtype == DType::bf16 ? run<1, bf16>(p, exec) : run<1, float>(p, exec);
}
size_t conv_igemm_bf16_workspace(const ConvParams& p, int threads) {
  return p.dtype == DType::bf16 ? workspace<1, bf16>(p, threads) : workspace<1, float>(p, threads);
}
size_t conv_igemm_bf16_kept(const ConvParams& p) {
  return p.dtype == DType::bf16 ? kept<1, bf16>(p) : kept<1, float>(p);
}
void conv_igemm_bf16x3(const ConvParams& p, const Exec& exec) {
  p.dtype == DType::f16 ? run<2, f16>(p, exec) : run<2, float>(p, exec);
}
size_t conv_igemm_bf16x3_workspace(const ConvParams& p, int threads) {
  return p.dtype == DType::f16 ? workspace<2, f16>(p, threads) : workspace<2, float>(p, threads);
}
size_t conv_igemm_bf16x3_kept(const ConvParams& p) {
  return p.dtype == DType::f16 ? kept<2, f16>(p) : kept<2, float>(p);
}
void conv_igemm_bf16x6(const ConvParams& p, const Exec& exec) { run<3, float>(p, exec); }
size_t conv_igemm_bf16x6_workspace(const ConvParams& p, int threads) { return workspace<3, float>(p, threads); }
size_t conv_igemm_bf16x6_kept(const ConvParams& p) { return kept<3, float>(p); }

}  // namespace fastcv::FASTCV_ISA
