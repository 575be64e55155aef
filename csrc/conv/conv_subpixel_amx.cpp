// Sub-pixel convolution on AMX tiles: float32 as three bfloat16 parts, as in conv_igemm_amx.cpp.
#include "conv/conv_subpixel.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct Product {
  static void run(const ConvParams& p, const Exec& exec) { conv_igemm_bf16x6(p, exec); }
  static size_t workspace(const ConvParams& p, int threads) { return conv_igemm_bf16x6_workspace(p, threads); }
  static size_t kept(const ConvParams& p) { return conv_igemm_bf16x6_kept(p); }
};
constexpr int kLanes = 16;  // columns of a tile

}  // namespace

void conv_subpixel_bf16x6(const ConvParams& p, const Exec& exec) {
  Subpixel<Product>(p, exec.threads, kLanes).run(exec);
}
size_t conv_subpixel_bf16x6_workspace(const ConvParams& p, int threads) {
  return Subpixel<Product>(p, threads, kLanes).workspace();
}
size_t conv_subpixel_bf16x6_kept(const ConvParams& p) { return Subpixel<Product>(p, 1, kLanes).kept(); }

}  // namespace fastcv::FASTCV_ISA
