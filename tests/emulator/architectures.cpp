// A table of CUDA kernels on GPUs of several architectures: prints what a call takes, or why there is nothing to take.
#include <cstdio>
#include <string>

#include "common/variant.h"

namespace fastcv {
namespace {

struct Params {
  bool odd;
};
void on_cpu(const Params&, const Exec&) {}
int launcher(const Params&, void*, CUstream_st*) { return 0; }
const char* why_not_odd(const Params& p) { return p.odd ? "needs an even size" : nullptr; }

constexpr Variant<Params> kRows[] = {{"ref", Isa::portable, nullptr, nullptr, &on_cpu}};
constexpr GpuVariant<Params> kGpuRows[] = {
    {"groups_sm90a", "sm90a", nullptr, nullptr, &launcher, nullptr},
    {"cluster_sm90", "sm90", &why_not_odd, nullptr, &launcher, nullptr},
    {"block_sm80", "sm80", nullptr, nullptr, &launcher, nullptr},
};
const VariantTable<Params> table("planted", kRows, kGpuRows);

void show(int capability, bool odd, const char* forced) {
  force_variant("planted", forced);
  std::string said;
  try {
    record_choices(true);
    said = table.choose_on_gpu({odd}, capability).name;
    record_choices(false);
    for (const Choice& c : take_recorded_choices()) said += " | " + c.variant + ": " + c.reason;
  } catch (const std::invalid_argument& error) {
    said = error.what();
  }
  std::printf("%d %s %s -> %s\n", capability, odd ? "odd" : "even", *forced ? forced : "-", said.c_str());
}

}  // namespace
}  // namespace fastcv

int main() {
  using fastcv::show;
  for (const int capability : {75, 80, 86, 90, 100, 120}) show(capability, false, "");
  show(90, true, "cluster_sm90");
  show(80, false, "groups_sm90a");
  show(100, false, "groups_sm90a");
  show(90, false, "groups_sm90a");
  show(86, true, "");
}
