#include "common/variant.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

namespace fastcv {
namespace {

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::vector<VariantInfo>> tables;
  std::map<std::string, std::string> forced;
  std::atomic<bool> any_forced{false};  // spares the lock on the usual call
  std::atomic<bool> recording{false};
  std::vector<Choice> choices;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

const std::vector<VariantInfo>& table_of(Registry& r, const std::string& op) {
  const auto found = r.tables.find(op);
  if (found != r.tables.end()) return found->second;
  std::string known;
  for (const auto& [name, _] : r.tables) known += (known.empty() ? "" : ", ") + name;
  throw std::invalid_argument("no variants of '" + op + "'; there are variants of " + known);
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

RegisterVariants::RegisterVariants(const char* op, std::vector<VariantInfo> rows) {
  registry().tables.emplace(op, std::move(rows));
}

std::vector<VariantInfo> variants(const std::string& op) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  return table_of(r, op);
}

std::vector<std::string> variant_ops() {
  std::vector<std::string> names;
  for (const auto& [name, _] : registry().tables) names.push_back(name);
  return names;
}

void force_variant(const std::string& op, const std::string& name) {
  Registry& r = registry();
  std::lock_guard lock(r.mutex);
  const auto& rows = table_of(r, op);
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

void record_choices(bool on) { registry().recording = on; }

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
