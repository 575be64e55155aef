// A stack that can be left and come back to. No exceptions may cross it.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fastcv::emulator {

#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;
};
#else
struct Context {
  ucontext_t context;
};
#endif

// Saves the running context in `from` and goes on in `to`.
void switch_to(Context& from, Context& to);
// Makes `context` start at entry() on this stack. entry must never return.
void prepare(Context& context, std::byte* stack, size_t bytes, void (*entry)());

}  // namespace fastcv::emulator
