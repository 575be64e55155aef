#include "emulator/fiber.h"

#include <cstdint>

namespace fastcv::emulator {

#if defined(__x86_64__)

// The System V ABI keeps six registers over a call; the return address lies on the stack that is switched.
extern "C" void fastcv_switch_stack(void** from, void* to);
asm(R"(
.text
.hidden fastcv_switch_stack
.globl fastcv_switch_stack
.type fastcv_switch_stack, @function
fastcv_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastcv_switch_stack, .-fastcv_switch_stack
)");

void switch_to(Context& from, Context& to) { fastcv_switch_stack(&from.stack_pointer, to.stack_pointer); }

void prepare(Context& context, std::byte* stack, size_t bytes, void (*entry)()) {
  // As if entry had been called: 16-byte alignment plus the slot of a return address that is never used.
  auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
  auto slots = reinterpret_cast<void**>(top) - 1;
  *slots = nullptr;
  *--slots = reinterpret_cast<void*>(entry);
  context.stack_pointer = slots - 6;
}

#else

void switch_to(Context& from, Context& to) { swapcontext(&from.context, &to.context); }

void prepare(Context& context, std::byte* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = bytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}

#endif

}  // namespace fastcv::emulator
