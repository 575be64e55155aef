// Sub-pixel convolution on vector registers.
#include "conv/conv_subpixel.h"

namespace fastcv::FASTCV_ISA {
namespace {

struct Product {
  static void run(const ConvParams& p, const Exec& exec) { conv_igemm(p, exec); }
  static size_t workspace(const ConvParams& p, int threads) { return conv_igemm_workspace(p, threads); }
  static size_t kept(const ConvParams& p) { return conv_igemm_kept(p); }
};
constexpr int kLanes = Vec<float>::width;

}  // namespace

void conv_subpixel(const ConvParams& p, const Exec& exec) { Subpixel<Product>(p, exec.threads, kLanes).run(exec); }
size_t conv_subpixel_workspace(const ConvParams& p, int threads) {
  return Subpixel<Product>(p, threads, kLanes).workspace();
}
size_t conv_subpixel_kept(const ConvParams& p) { return Subpixel<Product>(p, 1, kLanes).kept(); }

}  // namespace fastcv::FASTCV_ISA
