// Threads of the library's own, which a program that loads it must not notice.
#pragma once

#include <cfenv>
#include <exception>
#include <functional>
#include <thread>

namespace q3 {

// Makes the calling thread round to nearest, take subnormal numbers for zeros and trap nothing. The instructions that
// multiply bf16 know no subnormal numbers, so code that computes the same with others must not either; and no result
// of a model depends on numbers below 1e-38.
void setDefaultFloats() noexcept;

// The same for a scope. Results would otherwise depend on what the calling program has set, and differ between its
// thread and ours.
class DefaultFloats {
public:
    DefaultFloats() noexcept {
        std::fegetenv(&saved_);
        setDefaultFloats();
    }
    ~DefaultFloats() { std::fesetenv(&saved_); }
    DefaultFloats(const DefaultFloats &) = delete;
    DefaultFloats &operator=(const DefaultFloats &) = delete;

private:
    std::fenv_t saved_;
};

// Touches what the C++ library keeps per thread for exceptions. Where it is a library of its own, the dynamic loader
// may allocate that at the first touch and ends the process when it cannot, which must not happen while an exception
// about missing memory is thrown. Where it is linked in (xmake.lua), every thread has it from the start.
inline void prepareToThrow() noexcept {
    const std::exception_ptr none = std::current_exception();
}

// Starts a thread that computes in the default floating-point environment, may throw, and gets no signal that is sent
// to the process: a program that blocks a signal and waits for it must get it. Only faults of the thread itself, such
// as SIGSEGV, stay deliverable, so that a crash handler still sees them. Throws OUT_OF_MEMORY when the system refuses.
std::thread startThread(std::function<void()> body);

}  // namespace q3
