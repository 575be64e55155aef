// What two calls must share to be the same layer: the named numbers that the choice of a variant may depend on, and by
// which fastcv.tuned knows a layer. A params struct lists them once, in a static member
//
//   static void layer(auto& p, auto& visit) { visit("groups", p.groups); visit("dtype", p.dtype, kDTypeWords); ... }
//
// and never the batch or the threads: results must not depend on those. The visitors below make of it the key of a
// layer, its description for Python, and params again.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fastcv {

inline constexpr const char* kDTypeWords[] = {"f32", "f64", "bf16", "f16", "u8", "i64"};
inline constexpr const char* kLayoutWords[] = {"contiguous", "channels_last"};
inline constexpr const char* kTruthWords[] = {"no", "yes"};

inline constexpr int kLayerNumbers = 32;
using LayerKey = std::array<int64_t, kLayerNumbers>;  // unused ones are zero

// `count` numbers from `least` on, or the number of one of `words`.
struct LayerField {
  const char* name;
  int count;
  int64_t least;
  std::vector<const char*> words;
};

struct ToKey {
  LayerKey key{};
  size_t at = 0;
  void operator()(const char*, const int64_t& value, int64_t = 1) { key.at(at++) = value; }
  template <size_t n>
  void operator()(const char*, const int64_t (&values)[n], int64_t = 1) {
    for (const int64_t value : values) key.at(at++) = value;
  }
  template <class Word, size_t n>
  void operator()(const char*, const Word& word, const char* const (&)[n]) {
    key.at(at++) = static_cast<int64_t>(word);
  }
};

struct FromKey {
  const LayerKey& key;
  size_t at = 0;
  void operator()(const char*, int64_t& value, int64_t = 1) { value = key.at(at++); }
  template <size_t n>
  void operator()(const char*, int64_t (&values)[n], int64_t = 1) {
    for (int64_t& value : values) value = key.at(at++);
  }
  template <class Word, size_t n>
  void operator()(const char*, Word& word, const char* const (&)[n]) {
    word = static_cast<Word>(key.at(at++));
  }
};

struct ToFields {
  std::vector<LayerField> fields;
  void operator()(const char* name, const int64_t&, int64_t least = 1) { fields.push_back({name, 1, least, {}}); }
  template <size_t n>
  void operator()(const char* name, const int64_t (&)[n], int64_t least = 1) {
    fields.push_back({name, static_cast<int>(n), least, {}});
  }
  template <class Word, size_t n>
  void operator()(const char* name, const Word&, const char* const (&words)[n]) {
    fields.push_back({name, 1, 0, {words, words + n}});
  }
};

template <class Params>
concept HasLayer = requires(Params& params, ToKey& visit) { Params::layer(params, visit); };

template <HasLayer Params>
LayerKey layer_key(const Params& params) {
  ToKey visit;
  Params::layer(params, visit);
  return visit.key;
}

}  // namespace fastcv
