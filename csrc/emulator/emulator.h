// Runs CUDA kernels on the CPU, one fiber per CUDA thread, so that a machine without a GPU can test their logic.
//
// What it models: the grid (one block, or one cluster of blocks, after another, in a seeded random order), barriers,
// warp collectives, shared memory poisoned with NaN bytes, barriers in shared memory, and copies and matrix products
// that end late. The threads of a block run in a seeded random order and change over only where they wait, so nothing
// may lean on lock-step. What it reports, as an error of the launch:
//   - a barrier or collective that some of its threads never reach, or reach at another line,
//   - a read of shared memory that nobody wrote, an access outside of it, and two accesses of which one writes and
//     which no barrier orders (happens-before by vector clocks, one per warp; see order.h),
//   - a block of a cluster that ends while another one may still reach its shared memory.
// What it does not model: memory ordering between blocks, time, register limits. A kernel that passes here has the
// right logic; that it is right on a GPU only a GPU can show.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace fastcv::emulator {

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// What a thread sees of itself: CUDA's built-in variables.
struct Builtins {
  Dim3 thread, block, block_dim, grid_dim;
  unsigned rank;  // of the block in its cluster
};
const Builtins& self();
int lane();

using Where = std::source_location;

// Runs body once per thread of the grid. 0, or an error that last_error() words; the first error ends the launch.
// `cluster` blocks in a row (along x) run together and may read and write each other's shared memory.
int launch(Dim3 grid, Dim3 block, size_t dynamic_shared_bytes, const std::function<void()>& body, unsigned cluster = 1);
[[gnu::weak]] const char* last_error();  // weak: a build without the emulator asks whether it is there
// The seed of every later launch's thread and block order.
[[gnu::weak]] void seed(uint64_t value);
// Runs no more than `count` blocks (or clusters) of every later launch, the last one and then the first ones; 0: all.
// What the others would have written is missing: for looking at the far end of tensors too large to go through.
[[gnu::weak]] void most_blocks(uint64_t count);

// What every sum of a later mma.sync of floats is off by, relative to its largest addend and up or down by its place:
// how tensor cores round is not documented, so a kernel that relies on a bound is tried at that bound. 0 at first.
[[gnu::weak]] void set_product_loss(double loss);
double product_loss();

// Waiting ---------------------------------------------------------------------------------------------------------

// Barrier `id` (0 is __syncthreads) of `threads` threads of the block; 0 stands for all of them.
void barrier(int id, int threads, Where where);
// Every lane in mask arrives with its own `mine`; the last one runs meet(all, mask), all[lane] being what that lane
// brought (null outside the mask); then all go on. `orders`: whether it orders shared memory as __syncwarp does.
void meet(uint32_t mask, void* mine, void (*complete)(void** all, uint32_t mask), bool orders, const char* what,
          Where where);
// Waits for all threads of the cluster.
void cluster_barrier(Where where);
// Lets other threads run: for loops that poll.
void give_way(Where where);

// Shared memory ---------------------------------------------------------------------------------------------------

// The block's array declared at `where` (or its dynamic part): the same bytes for every thread of the block.
std::byte* shared_array(size_t bytes, size_t alignment, Where where);
std::byte* dynamic_shared();
// The same place in the shared memory of block `rank` of the cluster.
std::byte* shared_of(const std::byte* mine, unsigned rank);
enum class Access { read, write, atomic };
// Checks one access of the running thread to shared memory. Does not return if it is an error.
void touch(const std::byte* at, size_t bytes, Access access, Where where);

// Delayed copies (cp.async) -----------------------------------------------------------------------------------------

// Copies `bytes` to shared memory at some time before the wait for its group; zeros where !valid.
void copy_later(std::byte* to, const void* from, size_t bytes, bool valid, Where where);
void commit_copies();
// Waits until at most `pending` committed groups of this thread have not landed.
void wait_copies(int pending);

// Barriers in shared memory (mbarrier), and copies that report to them
// -------------------------------------------------

// A barrier whose phases end when `arrivals` have come and as many bytes have landed as were announced.
void barrier_init(std::byte* at, uint32_t arrivals, Where where);
void barrier_arrive(std::byte* at, uint32_t expected_bytes, Where where);
// Waits for the end of the phase of this parity: the first has parity 0, and the one before it, 1, counts as ended.
void barrier_wait(std::byte* at, uint32_t parity, Where where);
// At some later time fill(to) writes `bytes` bytes, which then count at the barrier. Until then they hold NaN.
void copy_bulk(std::byte* to, size_t bytes, std::byte* barrier, std::function<void(std::byte*)> fill, Where where);

// Work of the calling thread that runs no sooner than when it waits for its group (wgmma)
// ------------------------------
void queue_work(std::function<void()> work);
void commit_work();
void wait_work(int pending);
// Where a pointer into a block's shared memory lies in it: what the low bits of its address are on a GPU. And back, in
// the block of the running thread.
size_t shared_offset(const std::byte* at);
std::byte* shared_at(size_t offset);

[[noreturn]] void fail(const char* what, Where where);

}  // namespace fastcv::emulator
