#include "common/variant.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace fastcv {
namespace {

struct LayerHash {
  size_t operator()(const LayerKey& key) const {
    uint64_t hash = 0;
    for (const int64_t value : key)
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29;
    return hash;
  }
};
// By op, by layer: the variant.
using Tuned = std::map<std::string, std::unordered_map<LayerKey, std::string, LayerHash>>;

constexpr int64_t kNumberLimit = int64_t{1} << 31;  // of a layer's numbers: products of two fit into 64 bits

struct Registry {
  std::mutex mutex;
  std::map<std::string, TableInfo> tables;
  std::map<std::string, std::string> forced;
  std::atomic<bool> any_forced{false};  // spares the lock on the usual call
  std::atomic<bool> recording{false};
  std::vector<Choice> choices;
  std::vector<TunedChoice> layers;
  Tuned tuned;
  std::atomic<bool> any_tuned{false};
};

Registry& registry() {
  static Registry instance;
  return instance;
}

const TableInfo& table_of(Registry& r, const std::string& op) {
  const auto found = r.tables.find(op);
  if (found != r.tables.end()) return found->second;
  std::string known;
  for (const auto& [name, _] : r.tables) known += (known.empty() ? "" : ", ") + name;
  throw std::invalid_argument("no variants of '" + op + "'; there are variants of " + known);
}

TunedChoice made_choice(Registry& r, const std::string& op, const LayerKey& key, const std::string& variant) {
  size_t count = 0;
  for (const LayerField& field : table_of(r, op).layer) count += static_cast<size_t>(field.count);
  return {op, {key.begin(), key.begin() + static_cast<std::ptrdiff_t>(count)}, variant};
}

}  // namespace

bool has_architecture(const char* needs, int capability) {
  const int oldest = std::atoi(needs + 2);  // after "sm"
  return needs[std::strlen(needs) - 1] == 'a' ? capability == oldest : capability >= oldest;
}
std::string lacks_architecture(const char* needs, int capability) {
  return std::string("needs ") + needs + ", have sm" + std::to_string(capability);
}

const char* needs(const VariantInfo& info) { return info.gpu != nullptr ? info.gpu : isa_name(info.isa); }

RegisterVariants::RegisterVariants(const char* op, TableInfo table) { registry().tables.emplace(op, std::move(table)); }

std::vector<VariantInfo> variants(const std::string& op) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  return table_of(r, op).rows;
}

std::vector<std::string> variant_ops() {
  std::vector<std::string> names;
  for (const auto& [name, _] : registry().tables) names.push_back(name);
  return names;
}

void force_variant(const std::string& op, const std::string& name) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  const auto& rows = table_of(r, op).rows;
  if (name.empty()) {
    r.forced.erase(op);
    r.any_forced = !r.forced.empty();
    return;
  }
  std::string known;
  for (const auto& row : rows) {
    if (name == row.name) {
      if (row.isa > cpu_isa())
        throw std::invalid_argument(op + ": variant " + name + " needs " + isa_name(row.isa) +
                                    ", this CPU or FASTCV_CPU_ISA allows " + isa_name(cpu_isa()));
      r.forced[op] = name;
      r.any_forced = true;
      return;
    }
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  throw std::invalid_argument(op + ": no variant '" + name + "'; it has " + known);
}

std::string forced_variant(const std::string& op) {
  Registry& r = registry();
  if (!r.any_forced) return {};
  std::lock_guard lock(r.mutex);
  const auto found = r.forced.find(op);
  return found == r.forced.end() ? std::string() : found->second;
}

std::vector<LayerField> layer_fields(const std::string& op) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  return table_of(r, op).layer;
}

std::string why_not_tuned(const TunedChoice& choice) {
  Registry& r = registry();
  const TableInfo& table = table_of(r, choice.op);  // tables are complete, and stay, once the module is loaded
  if (table.layer.empty()) return "takes no measured choices";
  std::string known;
  bool found = false;
  for (const auto& row : table.rows) {
    found |= choice.variant == row.name;
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  if (!found) return "has no variant '" + choice.variant + "'; it has " + known;
  size_t at = 0;
  for (const LayerField& field : table.layer) {
    const int64_t limit = field.words.empty() ? kNumberLimit : static_cast<int64_t>(field.words.size());
    for (int i = 0; i < field.count; ++i, ++at)
      if (at >= choice.layer.size() || choice.layer[at] < field.least || choice.layer[at] >= limit)
        return std::string("has no such layer: ") + field.name + " is missing or out of range";
  }
  if (at != choice.layer.size()) return "has no such layer: it has too many numbers";
  LayerKey key{};
  std::copy(choice.layer.begin(), choice.layer.end(), key.begin());
  const std::string why = table.refuses(key, choice.variant);
  return why.empty() ? "" : "cannot take " + choice.variant + " here, which " + why;
}

void set_tuned(const std::vector<TunedChoice>& choices) {
  Tuned tuned;
  for (const TunedChoice& choice : choices) {
    const std::string why = why_not_tuned(choice);
    if (!why.empty()) throw std::invalid_argument(choice.op + " " + why);
    LayerKey key{};
    std::copy(choice.layer.begin(), choice.layer.end(), key.begin());
    tuned[choice.op][key] = choice.variant;
  }
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.tuned = std::move(tuned);
  r.any_tuned = !r.tuned.empty();
}

std::vector<TunedChoice> tuned_choices() {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  std::vector<TunedChoice> choices;
  for (const auto& [op, layers] : r.tuned)
    for (const auto& [key, variant] : layers) choices.push_back(made_choice(r, op, key, variant));
  return choices;
}

bool any_tuned() { return registry().any_tuned; }

std::string tuned_variant(const char* op, const LayerKey& layer) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  const auto layers = r.tuned.find(op);
  if (layers == r.tuned.end()) return {};
  const auto found = layers->second.find(layer);
  return found == layers->second.end() ? std::string() : found->second;
}

void record_layer(const char* op, const LayerKey& layer, const char* variant) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.layers.push_back(made_choice(r, op, layer, variant));
}

std::vector<TunedChoice> take_recorded_layers() {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  return std::exchange(r.layers, {});
}

void record_choices(bool on) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  if (on) r.layers.clear();  // of a recording whose layers nobody took
  r.recording = on;
}

bool recording_choices() { return registry().recording; }

void record_choice(Choice choice) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  r.choices.push_back(std::move(choice));
}

std::vector<Choice> take_recorded_choices() {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  return std::exchange(r.choices, {});
}

}  // namespace fastcv
