// The door of conv_sequence: many calls of the raw op conv in one, with nothing between two kernels but their doors.
//
// Every tensor has a number: first those that are handed over, then the output of each step. `plan` is a row of numbers
// per step: input, residual, weight, bias, packed (-1: none), groups, activation, precision, and stride, padding and
// dilation, each behind its length; `slopes` has one for each step. A tensor that a step has made is given back after
// its last use, unless it is one of `outputs`.
#include "conv/conv_door.h"

#include <limits>
#include <utility>

namespace fastcv {
namespace {

using namespace door;

struct Step {
  int64_t input, residual, weight, bias, packed, groups, activation, precision;
  Ints stride, padding, dilation;
};

// Reads a plan from its first number to its last.
class Plan {
 public:
  explicit Plan(const Ints& numbers) : numbers_(numbers) {}
  bool ended() const { return at_ == numbers_.size(); }
  Step step() {
    Step s{next(), next(), next(), next(), next(), next(), next(), next(), {}, {}, {}};
    s.stride = list();
    s.padding = list();
    s.dilation = list();
    return s;
  }

 private:
  int64_t next() {
    check(!ended(), "conv_sequence: the plan ends within a step");
    return numbers_[at_++];
  }
  Ints list() {
    const int64_t length = next();
    check(length >= 0 && length <= static_cast<int64_t>(numbers_.size() - at_),
          "conv_sequence: the plan ends within a step");
    const auto from = numbers_.begin() + static_cast<std::ptrdiff_t>(at_);
    at_ += static_cast<size_t>(length);
    return {from, from + length};
  }

  const Ints& numbers_;
  size_t at_ = 0;
};

std::vector<Tensor> conv_sequence_impl(std::vector<Tensor> tensors, Ints plan, std::vector<double> slopes,
                                       Ints outputs) {
  const auto given = static_cast<int64_t>(tensors.size());
  std::vector<Step> steps;
  for (Plan rest(plan); !rest.ended();) steps.push_back(rest.step());
  check(slopes.size() == steps.size(), "conv_sequence: expected ", steps.size(), " slopes, got ", slopes.size());

  std::vector<size_t> last(tensors.size() + steps.size(), 0);  // the step that uses a tensor last
  for (size_t i = 0; i < steps.size(); ++i) {
    const int64_t own = given + static_cast<int64_t>(i);
    const Step& s = steps[i];
    last[static_cast<size_t>(own)] = i;
    check(s.input >= 0 && s.weight >= 0, "conv_sequence: step ", i, " lacks an input or a weight");
    for (const int64_t t : {s.input, s.weight, s.residual, s.bias, s.packed}) {
      check(t >= -1 && t < own, "conv_sequence: step ", i, " reads tensor ", t, ", and there are ", own);
      if (t >= 0) last[static_cast<size_t>(t)] = i;
    }
  }
  constexpr size_t kNever = std::numeric_limits<size_t>::max();
  for (const int64_t t : outputs) {
    check(t >= given && t < given + static_cast<int64_t>(steps.size()) && last[static_cast<size_t>(t)] != kNever,
          "conv_sequence: outputs must be different outputs of the ", steps.size(), " steps after ", given,
          " tensors, got ", show(outputs));
    last[static_cast<size_t>(t)] = kNever;
  }

  std::vector<OptionalTensor> held(tensors.begin(), tensors.end());
  held.resize(last.size());
  const auto tensor = [&](int64_t t) { return t < 0 ? OptionalTensor{} : held[static_cast<size_t>(t)]; };
  for (size_t i = 0; i < steps.size(); ++i) {
    Step& s = steps[i];
    const int64_t own = given + static_cast<int64_t>(i);
    held[static_cast<size_t>(own)] = conv_of(*tensor(s.input), *tensor(s.weight), tensor(s.bias), std::move(s.stride),
                                             std::move(s.padding), std::move(s.dilation), s.groups, tensor(s.residual),
                                             s.activation, s.precision, tensor(s.packed), slopes[i]);
    for (const int64_t t : {own, s.input, s.weight, s.residual, s.bias, s.packed})
      if (t >= given && last[static_cast<size_t>(t)] == i) held[static_cast<size_t>(t)].reset();
  }
  std::vector<Tensor> results;
  for (const int64_t t : outputs) results.push_back(*held[static_cast<size_t>(t)]);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fastcv, m) {
  m.def("conv_sequence(Tensor[] tensors, int[] plan, float[] slopes, int[] outputs) -> Tensor[]");
}
FASTCV_IMPL(m) { m.impl("conv_sequence", TORCH_BOX(&conv_sequence_impl)); }

}  // namespace fastcv
