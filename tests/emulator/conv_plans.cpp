// The host arithmetic behind the CUDA convolutions against plain loops: prints a line per subject, "ok" or what is
// wrong.
#include <cstdio>
#include <set>
#include <string>
#include <tuple>

#include "conv/conv_gpu.h"

namespace fastcv {
namespace {

std::string show(std::initializer_list<int64_t> numbers) {
  std::string text;
  for (const int64_t n : numbers) text += " " + std::to_string(n);
  return text;
}

ConvParams layer(int64_t channels, int64_t outputs, int64_t in, int64_t out, int64_t kernel) {
  ConvParams p{};
  p.n = 1, p.c = channels, p.k = outputs, p.groups = 1;
  for (int i = 0; i < 3; ++i) p.in[i] = p.out[i] = p.kernel[i] = p.stride[i] = p.dilation[i] = 1;
  p.in[1] = p.in[2] = in, p.out[1] = p.out[2] = out, p.kernel[1] = p.kernel[2] = kernel;
  p.pad[1] = p.pad[2] = kernel / 2;
  p.dtype = DType::bf16;
  p.channels_last = p.weight_channels_last = true;
  return p;
}

// Every output of an input gradient meets, through its phase's convolution, the inputs and kernel indices that the
// definition names, in rising order of inputs.
std::string phases() {
  for (const int64_t stride : {1, 2, 3, 4, 6})
    for (const int64_t dilation : {1, 2, 3, 4})
      for (const int64_t kernel : {1, 2, 3, 5})
        for (const int64_t pad : {0, 1, 4})
          for (const int64_t out : {1, 3, 8, 11}) {
            ConvParams p = layer(1, 1, 4, out, kernel);
            p.transposed = true;
            p.stride[1] = p.stride[2] = stride, p.dilation[1] = p.dilation[2] = dilation;
            p.pad[1] = p.pad[2] = pad;
            std::set<std::tuple<int64_t, int64_t, int64_t>> expected, got;  // output, input, kernel index
            for (int64_t o = 0; o < out; ++o)
              for (int64_t r = 0; r < kernel; ++r)
                if (const int64_t at = o + pad - r * dilation; at % stride == 0) expected.insert({o, at / stride, r});
            const PhasePlan::Dim dim = PhasePlan(p).dims[1];
            int64_t before = 0;
            for (int64_t phase = 0; phase < dim.phases; ++phase) {
              const PhaseConv& of = dim.of[phase];
              if (dim.before[phase] != before || of.dilation < 1) return "taps before a phase";
              before += of.count;
              for (int64_t cell = 0; cell < of.cells; ++cell)
                for (int64_t t = 0; t < of.count; ++t)
                  got.insert({cell * stride + phase, cell - of.pad + t * of.dilation,
                              of.first + (of.count - 1 - t) * of.step});
            }
            if (got != expected || before != dim.taps)
              return "stride, dilation, kernel, pad, out" + show({stride, dilation, kernel, pad, out});
          }
  return "ok";
}

std::string weight_gradient_segments() {
  for (const int64_t tiles : {1, 2, 3, 9, 36, 131, 144, 1000})
    for (int64_t steps = 1; steps < 300'000; steps += 1 + steps / 3) {
      const int64_t length = WgradSm90Plan::segment_length(tiles, steps), count = (steps + length - 1) / length;
      const bool covers = length >= 1 && (count - 1) * length < steps && count * length >= steps;
      const bool fits = length <= 1024 && (length >= 16 || count == 1);
      if (!covers || !fits) return "tiles, steps, length" + show({tiles, steps, length});
    }
  // ResNet-50's 64 channels at 56 x 56, batch 64: 3 tiles of 3136 steps, one wave of 132 blocks.
  const int64_t length = WgradSm90Plan::segment_length(3, 3136);
  return (3136 + length - 1) / length == 44 ? "ok" : "3 tiles of 3136 steps are cut into segments of" + show({length});
}

std::string forward_segments() {
  for (const int64_t channels : {3, 64, 72, 512, 2048})
    for (const int64_t size : {1, 7, 14, 56})
      for (const int64_t kernel : {1, 3})
        for (const bool transposed : {false, true}) {
          ConvParams p = layer(channels, 512, size, size, kernel);
          p.transposed = transposed;
          const SegmentedPlan alone(p);
          if (alone.length * alone.segments < alone.steps || alone.length * (alone.segments - 1) >= alone.steps)
            return "channels, size, kernel" + show({channels, size, kernel});
          for (const int64_t n : {2, 16, 1000}) {
            p.n = n;
            const SegmentedPlan batch(p);
            if (batch.length != alone.length || batch.segments != alone.segments || batch.tiles < alone.tiles)
              return "the batch decides: n, channels, size" + show({n, channels, size});
          }
          if (SegmentedPlan(p).apart && size > 1) return "a thousand images have few tiles" + show({size});
        }
  const SegmentedPlan last(layer(512, 512, 7, 7, 3));
  return last.segments == 18 && last.apart ? "ok" : "512 at 7 x 7:" + show({last.segments});
}

}  // namespace
}  // namespace fastcv

int main() {
  using namespace fastcv;
  std::printf("phases %s\n", phases().c_str());
  std::printf("weight_gradient_segments %s\n", weight_gradient_segments().c_str());
  std::printf("forward_segments %s\n", forward_segments().c_str());
}
