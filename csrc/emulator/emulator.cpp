#include "emulator/emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "emulator/fiber.h"
#include "emulator/order.h"

namespace fastcv::emulator {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kSharedBytes = 232448;  // what a block may have on sm_90
constexpr int kPoison = 0xff;            // NaN in every float type
constexpr int kNamedBarriers = 16;
constexpr int kMaxCluster = 8;
constexpr int kErrorInvalidConfiguration = 9, kErrorLaunchFailure = 719;  // as CUDA numbers them

// Where a thread is, for messages.
std::string at(const Where& where) {
  const char* file = std::strrchr(where.file_name(), '/');
  return std::string(file == nullptr ? where.file_name() : file + 1) + ":" + std::to_string(where.line());
}

struct Copy {
  std::byte* to;
  const void* from;
  size_t bytes;
  bool valid;
  Where where;
};

struct Fiber {
  Context context;
  Builtins builtins;
  enum class State { ready, waiting, ended } state;
  const char* what = "";  // what it waits for
  Where where;
  void* brought = nullptr;
  std::vector<std::vector<Copy>> groups;  // committed and not landed
  std::vector<Copy> open;
  std::vector<std::vector<std::function<void()>>> works;  // committed and not done
  std::vector<std::function<void()>> open_work;
};

struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Where where;
};

// A barrier in shared memory.
struct PhaseBarrier {
  uint32_t arrivals, pending, phase = 0;
  int64_t bytes = 0;  // announced and not landed
  int maker = -1;     // who initialised it, and when
  uint32_t made = 0;
  Clocks::Known gathering{}, released{};
  std::vector<int> waiting{};
};
struct BulkCopy {
  std::byte *to, *barrier;
  size_t bytes;
  std::function<void(std::byte*)> fill;
};

// The last accesses to one byte of shared memory. `block` tells entries of earlier blocks apart, so nothing is cleared.
struct Shadow {
  uint64_t block = 0;
  int writer = -1, reader = -1;
  uint32_t written = 0, read = 0;
  bool atomic = false;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  unsigned below(unsigned n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<unsigned>((state_ >> 33) % n);
  }

 private:
  uint64_t state_;
};

uint64_t g_seed = 1, g_most_blocks = 0;
double g_product_loss = 0;
thread_local std::string t_error;

class Machine;
thread_local Machine* t_machine = nullptr;

class Machine {
 public:
  Machine()
      : shared_(static_cast<std::byte*>(map(kSharedBytes * kMaxCluster))), shadow_(kSharedBytes), fibers_(kMaxFibers) {
    stacks_ = static_cast<std::byte*>(map(kStackBytes * kMaxFibers));
  }
  ~Machine() {
    munmap(shared_, kSharedBytes * kMaxCluster);
    munmap(stacks_, kStackBytes * kMaxFibers);
  }

  int launch(Dim3 grid, Dim3 block, size_t dynamic_bytes, const std::function<void()>& body, unsigned cluster) {
    const uint64_t threads = uint64_t{block.x} * block.y * block.z, blocks = uint64_t{grid.x} * grid.y * grid.z;
    if (threads == 0 || threads > kMaxThreads || block.z > 64 || blocks == 0 || grid.x > 0x7fffffffu ||
        grid.y > 65535 || grid.z > 65535 || dynamic_bytes > kSharedBytes || cluster == 0 || cluster > kMaxCluster ||
        grid.x % cluster != 0 || (cluster > 1 && (threads % kWarp != 0 || threads * cluster > kMaxFibers))) {
      t_error = "a grid of (" + show(grid) + ") blocks of (" + show(block) + ") threads with " +
                std::to_string(dynamic_bytes) + " bytes of shared memory cannot be launched";
      return kErrorInvalidConfiguration;
    }
    body_ = &body;
    random_ = Random(g_seed);
    failed_ = false;
    dynamic_bytes_ = dynamic_bytes;
    cluster_ = cluster;
    if (shadow_.size() < cluster * kSharedBytes) shadow_.resize(cluster * kSharedBytes);
    // Blocks start anywhere and go round: each order has every block once, without a permutation to hold. Of a launch
    // with more than are wanted, those from the last one on.
    const uint64_t clusters = blocks / cluster, wanted = g_most_blocks == 0 ? clusters : g_most_blocks;
    const uint64_t anywhere = (uint64_t{random_.below(0x7fffffff)} << 31 | random_.below(0x7fffffff)) % clusters;
    const uint64_t first = clusters > wanted ? clusters - 1 : anywhere;
    for (uint64_t i = 0; i < std::min(clusters, wanted) && !failed_; ++i) {
      const uint64_t b = (first + i) % clusters * cluster;
      run_cluster({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / grid.x / grid.y)},
                  grid, block);
    }
    return failed_ ? kErrorLaunchFailure : 0;
  }

  Fiber& current() { return fibers_[running_]; }

  void barrier(int id, int count, Where where) {
    if (id < 0 || id >= kNamedBarriers) fail("a barrier's id is not below 16", where);
    auto& waiting = barriers_[current().builtins.rank][id];
    if (count == 0) count = threads_;
    if (id == 0 && !waiting.empty()) {
      const Where& first = fibers_[waiting.front()].where;
      if (first.line() != where.line() || std::strcmp(first.file_name(), where.file_name()) != 0)
        fail(("divergent barrier: other threads of the block are at " + at(first)).c_str(), where);
    }
    waiting.push_back(running_);
    arrive(waiting, count, id == 0 ? "__syncthreads" : "a named barrier", where);
  }

  void cluster_barrier(Where where) {
    cluster_waiting_.push_back(running_);
    arrive(cluster_waiting_, threads_ * static_cast<int>(cluster_), "the cluster's barrier", where);
  }

  // The running thread has joined those that wait; the last of `count` lets all go on.
  void arrive(std::vector<int>& waiting, int count, const char* what, Where where) {
    current().what = what;
    current().where = where;
    if (static_cast<int>(waiting.size()) < count) return wait();
    std::vector<int> warps, arrived = std::move(waiting);
    waiting.clear();
    std::vector<bool> seen(kMaxWarps);
    for (int t : arrived)
      if (!seen[t / kWarp]) seen[t / kWarp] = true, warps.push_back(t / kWarp);
    clocks_.join(warps);
    for (int t : arrived) wake(t);
    give_way(where);
  }

  void meet(uint32_t mask, void* mine, void (*complete)(void**, uint32_t), bool orders, const char* what, Where where) {
    const int lane = running_ % kWarp, warp = running_ / kWarp;
    if ((mask >> lane & 1) == 0) fail((std::string(what) + ": the calling lane is not in the mask").c_str(), where);
    auto& meetings = meetings_[warp];
    Meeting* here = nullptr;
    for (auto& m : meetings)  // one of other lanes, some of which are to come here later, is no hindrance
      if (m.mask == mask) here = &m;
    if (here == nullptr) here = &meetings.emplace_back(Meeting{mask, 0, where});
    if (here->where.line() != where.line())
      fail((std::string(what) + ": lanes of the mask are at another collective, " + at(here->where)).c_str(), where);
    here->arrived |= 1u << lane;
    current().brought = mine;
    current().what = what;
    current().where = where;
    if (here->arrived != mask) return wait();
    void* all[kWarp] = {};
    for (int i = 0; i < kWarp; ++i)
      if (mask >> i & 1) all[i] = fibers_[warp * kWarp + i].brought;
    meetings.erase(meetings.begin() + (here - meetings.data()));
    if (complete != nullptr) complete(all, mask);
    if (orders) clocks_.tick(warp);
    for (int i = 0; i < kWarp; ++i)
      if (mask >> i & 1) wake(warp * kWarp + i);
    give_way(where);
  }

  // The caller stays ready and another ready thread may go first.
  void give_way(Where where) {
    current().where = where;
    ready_.push_back(running_);
    leave();
  }

  std::byte* shared_array(size_t bytes, size_t alignment, Where where) {
    const auto key = std::make_tuple(where.file_name(), where.line(), where.column(), bytes);
    const unsigned rank = current().builtins.rank;
    auto& arrays = arrays_[rank];
    std::byte* const region = shared_ + rank * kSharedBytes;
    const auto found = arrays.find(key);
    if (found != arrays.end()) return region + found->second;
    const size_t offset = (used_[rank] + alignment - 1) / alignment * alignment;
    if (offset + bytes > kSharedBytes) fail("the block's shared memory is larger than 232448 bytes", where);
    used_[rank] = offset + bytes;
    std::memset(region + offset, kPoison, bytes);
    arrays.emplace(key, offset);
    return region + offset;
  }

  std::byte* dynamic_shared() { return shared_ + current().builtins.rank * kSharedBytes; }
  std::byte* shared_of(const std::byte* mine, unsigned rank) {
    return shared_ + (mine - shared_) % kSharedBytes + rank * kSharedBytes;
  }

  void touch(const std::byte* at_byte, size_t bytes, Access access, Where where) {
    const size_t offset = static_cast<size_t>(at_byte - shared_), rank = offset / kSharedBytes;
    if (at_byte < shared_ || rank >= cluster_ || offset % kSharedBytes + bytes > used_[rank])
      fail("an access outside of the block's shared memory", where);
    if (rank != current().builtins.rank) {
      if (ended_[rank] == threads_) fail("an access to the shared memory of a block that has ended", where);
      reached_[rank][running_ / kWarp] = clocks_.now(running_);
    }
    if (reinterpret_cast<uintptr_t>(at_byte) % bytes != 0 && bytes <= 16)
      fail("an access to shared memory that is not aligned to its size", where);
    for (size_t i = at_byte - shared_; i < static_cast<size_t>(at_byte - shared_) + bytes; ++i) {
      Shadow& s = shadow_[i];
      if (s.block != block_) s = Shadow{block_};
      const bool both_atomic = access == Access::atomic && s.atomic;
      if (access != Access::write && s.writer < 0) fail("a read of shared memory that nobody wrote", where);
      if (s.writer >= 0 && !both_atomic && !clocks_.ordered(s.writer, s.written, running_))
        fail(race("wrote", s.writer).c_str(), where);
      if (access != Access::read && s.reader >= 0 && !clocks_.ordered(s.reader, s.read, running_))
        fail(race("read", s.reader).c_str(), where);
      if (access == Access::read) {
        // Of several readers the one that is not yet ordered is kept: it is the one a later write can race with.
        if (s.reader < 0 || clocks_.ordered(s.reader, s.read, running_))
          s.reader = running_, s.read = clocks_.now(running_);
      } else {
        s.writer = running_;
        s.written = clocks_.now(running_);
        s.atomic = access == Access::atomic;
      }
    }
  }

  // It may land at any time from now on, and be read once it was waited for: until then the place holds poison.
  void copy_later(Copy copy) {
    touch(copy.to, copy.bytes, Access::write, copy.where);
    std::memset(copy.to, kPoison, copy.bytes);
    current().open.push_back(copy);
  }
  void commit_copies() { current().groups.push_back(std::exchange(current().open, {})); }
  void wait_copies(int pending) {
    auto& groups = current().groups;
    while (static_cast<int>(groups.size()) > pending) {
      for (const Copy& c : groups.front()) {
        touch(c.to, c.bytes, Access::write, c.where);
        if (c.valid) std::memcpy(c.to, c.from, c.bytes);
        else std::memset(c.to, 0, c.bytes);
      }
      groups.erase(groups.begin());
    }
  }

  void barrier_init(std::byte* at, uint32_t arrivals, Where where) {
    touch(at, 8, Access::write, where);
    if (arrivals == 0) fail("a barrier for no arrivals", where);
    PhaseBarrier& b = phase_barriers_[at] = PhaseBarrier{arrivals, arrivals};
    b.maker = running_;
    b.made = clocks_.now(running_);
  }
  void barrier_arrive(std::byte* at, uint32_t bytes, Where where) {
    PhaseBarrier& b = phase_barrier(at, where);
    clocks_.release(running_ / kWarp, b.gathering);
    b.bytes += bytes;
    if (b.pending == 0) fail("more arrivals at a barrier than it was made for", where);
    --b.pending;
    end_phase(b);
  }
  void barrier_wait(std::byte* at, uint32_t parity, Where where) {
    PhaseBarrier* b = &phase_barrier(at, where);
    while ((b->phase & 1) == (parity & 1)) {
      b->waiting.push_back(running_);
      current().what = "a barrier in shared memory";
      current().where = where;
      wait();
    }
    clocks_.acquire(running_ / kWarp, b->released);
  }
  void copy_bulk(BulkCopy copy, Where where) {
    for (size_t i = 0; i < copy.bytes; i += 16) touch(copy.to + i, 16, Access::write, where);
    std::memset(copy.to, kPoison, copy.bytes);
    clocks_.release(running_ / kWarp, phase_barrier(copy.barrier, where).gathering);
    bulk_.push_back(std::move(copy));
  }
  void queue_work(std::function<void()> work) { current().open_work.push_back(std::move(work)); }
  void commit_work() { current().works.push_back(std::exchange(current().open_work, {})); }
  void wait_work(int pending) {
    auto& works = current().works;
    while (static_cast<int>(works.size()) > pending) {
      for (const auto& work : works.front()) work();
      works.erase(works.begin());
    }
  }
  size_t shared_offset(const std::byte* at) const { return (at - shared_) % kSharedBytes; }
  std::byte* shared_at(size_t offset) { return dynamic_shared() + offset; }

  [[noreturn]] void fail(const char* what, Where where) {
    if (!failed_) {
      const Builtins& b = current().builtins;
      t_error =
          std::string(what) + " (" + at(where) + ", thread (" + show(b.thread) + ") of block (" + show(b.block) + "))";
    }
    failed_ = true;
    for (;;) leave();  // the scheduler never comes back to a block that failed
  }

  static void enter() {
    (*t_machine->body_)();
    Fiber& fiber = t_machine->current();
    if (!fiber.open.empty() || !fiber.groups.empty())
      t_machine->fail("a thread ended with copies on their way", fiber.where);
    if (!fiber.open_work.empty() || !fiber.works.empty())
      t_machine->fail("a thread ended with matrix products on their way", fiber.where);
    fiber.state = Fiber::State::ended;
    t_machine->count_end(fiber.builtins.rank, fiber.where);
    for (;;) t_machine->leave();
  }

  // A thread of a block has ended. With the last one its shared memory goes: what other blocks did there must have
  // happened before, as some thread of the block knows.
  void count_end(unsigned rank, Where where) {
    if (++ended_[rank] < threads_) return;
    for (const auto& [warp, tick] : reached_[rank]) {
      bool known = false;
      for (int t = 0; t < threads_; t += kWarp)
        known = known || clocks_.ordered(warp * kWarp, tick, static_cast<int>(rank) * threads_ + t);
      if (!known) fail("a block ended whose shared memory another one of the cluster may still reach", where);
    }
  }

 private:
  static void* map(size_t bytes) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? throw std::bad_alloc() : memory;
  }
  static std::string show(Dim3 d) {
    return std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z);
  }
  std::string race(const char* did, int other) const {
    return std::string("a race: thread ") + std::to_string(other) + " of the block " + did +
           " this shared memory and no barrier orders the two";
  }
  // The blocks of a cluster, the first of which is `block`.
  void run_cluster(Dim3 block, Dim3 grid, Dim3 size) {
    ++block_;
    threads_ = static_cast<int>(size.x * size.y * size.z);
    for (unsigned rank = 0; rank < cluster_; ++rank) {
      used_[rank] = dynamic_bytes_;
      arrays_[rank].clear();
      ended_[rank] = 0;
      reached_[rank].clear();
      std::memset(shared_ + rank * kSharedBytes, kPoison, dynamic_bytes_);
      for (auto& waiting : barriers_[rank]) waiting.clear();
    }
    cluster_waiting_.clear();
    fibers_used_ = threads_ * static_cast<int>(cluster_);
    clocks_.reset((fibers_used_ + kWarp - 1) / kWarp);
    for (auto& meetings : meetings_) meetings.clear();
    ready_.clear();
    for (int t = 0; t < fibers_used_; ++t) {
      const auto u = static_cast<unsigned>(t % threads_), rank = static_cast<unsigned>(t / threads_);
      Fiber& fiber = fibers_[t];
      fiber.builtins = {
          {u % size.x, u / size.x % size.y, u / size.x / size.y}, {block.x + rank, block.y, block.z}, size, grid, rank};
      fiber.state = Fiber::State::ready;
      fiber.open.clear();
      fiber.groups.clear();
      fiber.open_work.clear();
      fiber.works.clear();
      prepare(fiber.context, stacks_ + kStackBytes * t, kStackBytes, &Machine::enter);
      ready_.push_back(t);
    }
    phase_barriers_.clear();
    bulk_.clear();
    while ((!ready_.empty() || !bulk_.empty()) && !failed_) {
      if (!bulk_.empty() && (ready_.empty() || random_.below(4) == 0)) {
        land(random_.below(static_cast<unsigned>(bulk_.size())));
        continue;
      }
      const unsigned pick = random_.below(static_cast<unsigned>(ready_.size()));
      std::swap(ready_[pick], ready_.back());
      running_ = ready_.back();
      ready_.pop_back();
      switch_to(scheduler_, fibers_[running_].context);
    }
    if (!failed_) report_stuck();
  }

  // Nobody can run: fine if all have ended.
  void report_stuck() {
    std::map<std::string, int> places;
    int ended = 0;
    for (int t = 0; t < fibers_used_; ++t) {
      if (fibers_[t].state == Fiber::State::ended) ++ended;
      else ++places[std::string(fibers_[t].what) + " (" + at(fibers_[t].where) + ")"];
    }
    if (places.empty()) return;
    failed_ = true;
    t_error = "threads wait for others that never come: ";
    for (const auto& [place, count] : places) t_error += std::to_string(count) + " at " + place + ", ";
    t_error += std::to_string(ended) + " have ended";
  }

  PhaseBarrier& phase_barrier(std::byte* at, Where where) {
    touch(at, 8, Access::atomic, where);
    const auto found = phase_barriers_.find(at);
    if (found == phase_barriers_.end()) fail("a barrier in shared memory that nobody initialised", where);
    if (!clocks_.ordered(found->second.maker, found->second.made, running_))
      fail("a barrier in shared memory that no other barrier says is initialised", where);
    return found->second;
  }
  void end_phase(PhaseBarrier& b) {
    if (b.pending != 0 || b.bytes != 0) return;
    b.pending = b.arrivals;
    ++b.phase;
    b.released = std::exchange(b.gathering, {});
    for (const int t : std::exchange(b.waiting, {})) {
      fibers_[t].state = Fiber::State::ready;
      ready_.push_back(t);
    }
  }
  void land(size_t i) {
    const BulkCopy copy = std::move(bulk_[i]);
    bulk_.erase(bulk_.begin() + static_cast<std::ptrdiff_t>(i));
    copy.fill(copy.to);
    PhaseBarrier& b = phase_barriers_.at(copy.barrier);
    b.bytes -= static_cast<int64_t>(copy.bytes);
    end_phase(b);
  }

  void wait() {
    current().state = Fiber::State::waiting;
    leave();
  }
  void wake(int thread) {
    if (thread == running_) return;  // it gives way instead
    fibers_[thread].state = Fiber::State::ready;
    ready_.push_back(thread);
  }
  void leave() { switch_to(current().context, scheduler_); }

  const std::function<void()>* body_ = nullptr;
  std::byte *shared_, *stacks_;
  std::vector<Shadow> shadow_;
  std::vector<Fiber> fibers_;
  Context scheduler_;
  std::vector<int> ready_;
  std::vector<int> barriers_[kMaxCluster][kNamedBarriers], cluster_waiting_;
  std::vector<Meeting> meetings_[kMaxWarps];
  std::map<std::tuple<const char*, unsigned, unsigned, size_t>, size_t> arrays_[kMaxCluster];
  std::map<int, uint32_t> reached_[kMaxCluster];  // a warp of another block, and when it last touched this one's memory
  int ended_[kMaxCluster] = {};                   // threads of the block
  std::map<std::byte*, PhaseBarrier> phase_barriers_;
  std::vector<BulkCopy> bulk_;
  Clocks clocks_;
  Random random_{1};
  size_t dynamic_bytes_ = 0, used_[kMaxCluster] = {};
  unsigned cluster_ = 1;
  uint64_t block_ = 0;
  int threads_ = 0, fibers_used_ = 0, running_ = 0;  // threads_: of a block
  bool failed_ = false;
};

}  // namespace

int launch(Dim3 grid, Dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& body, unsigned cluster) {
  if (t_machine == nullptr) {
    static thread_local std::unique_ptr<Machine> machine = std::make_unique<Machine>();
    t_machine = machine.get();
  }
  return t_machine->launch(grid, block, dynamic_shared_bytes, body, cluster);
}
const char* last_error() { return t_error.c_str(); }
void seed(uint64_t value) { g_seed = value; }
void most_blocks(uint64_t count) { g_most_blocks = count; }
void set_product_loss(double loss) { g_product_loss = loss; }
double product_loss() { return g_product_loss; }

const Builtins& self() { return t_machine->current().builtins; }
int lane() {
  const Builtins& b = self();
  return static_cast<int>((b.thread.x + b.block_dim.x * (b.thread.y + b.block_dim.y * b.thread.z)) % kWarp);
}
void barrier(int id, int threads, Where where) { t_machine->barrier(id, threads, where); }
void meet(uint32_t mask, void* mine, void (*complete)(void**, uint32_t), bool orders, const char* what, Where where) {
  t_machine->meet(mask, mine, complete, orders, what, where);
}
void cluster_barrier(Where where) { t_machine->cluster_barrier(where); }
void give_way(Where where) { t_machine->give_way(where); }
std::byte* shared_array(size_t bytes, size_t alignment, Where where) {
  return t_machine->shared_array(bytes, alignment, where);
}
std::byte* dynamic_shared() { return t_machine->dynamic_shared(); }
std::byte* shared_of(const std::byte* mine, unsigned rank) { return t_machine->shared_of(mine, rank); }
void touch(const std::byte* at, size_t bytes, Access access, Where where) {
  t_machine->touch(at, bytes, access, where);
}
void copy_later(std::byte* to, const void* from, size_t bytes, bool valid, Where where) {
  t_machine->copy_later({to, from, bytes, valid, where});
}
void commit_copies() { t_machine->commit_copies(); }
void wait_copies(int pending) { t_machine->wait_copies(pending); }
void barrier_init(std::byte* at, uint32_t arrivals, Where where) { t_machine->barrier_init(at, arrivals, where); }
void barrier_arrive(std::byte* at, uint32_t expected_bytes, Where where) {
  t_machine->barrier_arrive(at, expected_bytes, where);
}
void barrier_wait(std::byte* at, uint32_t parity, Where where) { t_machine->barrier_wait(at, parity, where); }
void copy_bulk(std::byte* to, size_t bytes, std::byte* barrier, std::function<void(std::byte*)> fill, Where where) {
  t_machine->copy_bulk({to, barrier, bytes, std::move(fill)}, where);
}
void queue_work(std::function<void()> work) { t_machine->queue_work(std::move(work)); }
void commit_work() { t_machine->commit_work(); }
void wait_work(int pending) { t_machine->wait_work(pending); }
size_t shared_offset(const std::byte* at) { return t_machine->shared_offset(at); }
std::byte* shared_at(size_t offset) { return t_machine->shared_at(offset); }
void fail(const char* what, Where where) { t_machine->fail(what, where); }

}  // namespace fastcv::emulator
