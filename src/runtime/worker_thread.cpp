#include "runtime/worker_thread.h"

#include <pthread.h>
#include <signal.h>

#include <cstdint>
#include <system_error>
#include <utility>

#include "runtime/error.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace q3 {
namespace {

// Blocks signals for a scope; a thread inherits the mask of the one that starts it.
class BlockedSignals {
public:
    BlockedSignals() noexcept {
        sigset_t blocked;
        sigfillset(&blocked);
        for (const int fault : {SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP}) {
            sigdelset(&blocked, fault);
        }
        pthread_sigmask(SIG_SETMASK, &blocked, &saved_);
    }
    ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }
    BlockedSignals(const BlockedSignals &) = delete;
    BlockedSignals &operator=(const BlockedSignals &) = delete;

private:
    sigset_t saved_;
};

}  // namespace

void setDefaultFloats() noexcept {
    std::fesetenv(FE_DFL_ENV);
#if defined(__x86_64__)
    constexpr unsigned kAllMasked = 0x1f80;  // FE_DFL_ENV leaves the trap of subnormal operands, which C does not know
    constexpr unsigned kNoSubnormals = 0x8040;  // results (FTZ) and operands (DAZ) become zeros
    _mm_setcsr(kAllMasked | kNoSubnormals);
#elif defined(__aarch64__)
    constexpr uint64_t kNoSubnormals = uint64_t{1} << 24;  // FPCR.FZ
    uint64_t control;
    asm volatile("mrs %0, fpcr" : "=r"(control));
    asm volatile("msr fpcr, %0" : : "r"(control | kNoSubnormals));
#endif
}

std::thread startThread(std::function<void()> body) {
    const BlockedSignals blocked;
    try {
        return std::thread([body = std::move(body)] {
            setDefaultFloats();
            prepareToThrow();
            body();
        });
    } catch (const std::system_error &error) {
        fail(QWEN3_STATUS_OUT_OF_MEMORY, "could not start a thread: %s (memory, or a limit on threads)",
             systemReason(error.code().value()).c_str());
    }
}

}  // namespace q3
