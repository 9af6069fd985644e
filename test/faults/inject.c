/*
 * Makes calls of the C library fail on command: put it into LD_PRELOAD, then call fault_arm and fault_disarm, which
 * fault_driver.c looks up.
 *
 * While it is armed, every call of a kind counts, on whatever thread; the n-th fails, or all from the n-th on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAULT_MEMORY = 1, FAULT_FILES = 2, FAULT_SHORT = 4 };

static atomic_int g_kind, g_error, g_all, g_fired;
static atomic_long g_left, g_live;

/* Arms: the nth (from 1) call of a kind fails with `error`; all != 0: so do all after it. */
void fault_arm(int kind, long nth, int error, int all) {
    atomic_store(&g_error, error);
    atomic_store(&g_all, all);
    atomic_store(&g_fired, 0);
    atomic_store(&g_left, nth);
    atomic_store(&g_kind, kind);
}

/* Disarms; returns whether a call failed. */
int fault_disarm(void) {
    atomic_store(&g_kind, 0);
    return atomic_load(&g_fired);
}

/* Returns how many calls of the kind were still to come before the one that fails. */
long fault_left(void) {
    return atomic_load(&g_left);
}

/* Returns how many blocks of memory are allocated and not freed, relative to the process's start. */
long fault_live_blocks(void) {
    return atomic_load(&g_live);
}

/* Calls `hook` after the nth (from 1) time that the caller's memory is read by the kernel; NULL: no more. */
static void (*g_read_hook)(void);
static atomic_long g_reads_left;
void fault_after_read(void (*hook)(void), long nth) {
    atomic_store(&g_reads_left, nth);
    g_read_hook = hook;
}

static void afterRead(void) {
    if (g_read_hook != NULL && atomic_fetch_sub(&g_reads_left, 1) == 1) {
        g_read_hook();
    }
}

static int fails(int kind) {
    if ((atomic_load_explicit(&g_kind, memory_order_relaxed) & kind) == 0) {
        return 0;
    }
    const long left = atomic_fetch_sub(&g_left, 1);
    if (left == 1 || (left < 1 && atomic_load(&g_all) != 0)) {
        atomic_store(&g_fired, 1);
        errno = kind == FAULT_MEMORY ? ENOMEM : atomic_load(&g_error);
        return 1;
    }
    return 0;
}

/* ------------------------------------------------------------------ memory */

#define NO_MEMORY fails(FAULT_MEMORY)

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t), __libc_free(void *);

static void *counted(void *block) {
    if (block != NULL) {
        atomic_fetch_add_explicit(&g_live, 1, memory_order_relaxed);
    }
    return block;
}

void *malloc(size_t bytes) {
    return NO_MEMORY ? NULL : counted(__libc_malloc(bytes));
}

void *calloc(size_t count, size_t bytes) {
    return NO_MEMORY ? NULL : counted(__libc_calloc(count, bytes));
}

void *realloc(void *block, size_t bytes) {
    if (NO_MEMORY) {
        return NULL;
    }
    void *moved = __libc_realloc(block, bytes);
    atomic_fetch_add_explicit(&g_live, (moved != NULL) - (block != NULL && (moved != NULL || bytes == 0)),
                              memory_order_relaxed);
    return moved;
}

void *memalign(size_t alignment, size_t bytes) {
    return NO_MEMORY ? NULL : counted(__libc_memalign(alignment, bytes));
}

void *aligned_alloc(size_t alignment, size_t bytes) {
    return memalign(alignment, bytes);
}

int posix_memalign(void **block, size_t alignment, size_t bytes) {
    *block = memalign(alignment, bytes);
    return *block == NULL ? ENOMEM : 0;
}

void free(void *block) {
    if (block != NULL) {
        atomic_fetch_sub_explicit(&g_live, 1, memory_order_relaxed);
    }
    __libc_free(block);
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (fails(FAULT_MEMORY)) {
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, address, bytes, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return mmap(address, bytes, protection, flags, fd, offset);
}

/* ------------------------------------------------------------------ threads and files: looked up behind this library
 */

#define NEXT(type, name, ...)                                                                                          \
    static type (*next_##name)(__VA_ARGS__);                                                                           \
    __attribute__((constructor)) static void find_##name(void) {                                                       \
        *(void **)&next_##name = dlsym(RTLD_NEXT, #name);                                                              \
    }

NEXT(int, pthread_create, pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    return fails(FAULT_MEMORY) ? EAGAIN : next_pthread_create(thread, attributes, start, argument);
}

/* The mode is there when the flags say so. */
#define MODE(flags)                                                                                                    \
    mode_t mode = 0;                                                                                                   \
    if (((flags) & O_CREAT) != 0 || ((flags) & O_TMPFILE) == O_TMPFILE) {                                              \
        va_list list;                                                                                                  \
        va_start(list, flags);                                                                                         \
        mode = va_arg(list, mode_t);                                                                                   \
        va_end(list);                                                                                                  \
    }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return fails(FAULT_FILES) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags)
    return fails(FAULT_FILES) ? -1 : (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE(flags)
    return fails(FAULT_FILES) ? -1 : (int)syscall(SYS_openat, folder, path, flags, mode);
}

/* A short transfer is no error: whoever reads or writes has to go on. */
static size_t some(size_t bytes) {
    return bytes > 1 && fails(FAULT_SHORT) ? bytes / 2 : bytes;
}

ssize_t read(int fd, void *data, size_t bytes) {
    return fails(FAULT_FILES) ? -1 : (ssize_t)syscall(SYS_read, fd, data, some(bytes));
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset) {
    return fails(FAULT_FILES) ? -1 : (ssize_t)syscall(SYS_pread64, fd, data, some(bytes), offset);
}

ssize_t pread64(int fd, void *data, size_t bytes, off_t offset) {
    return pread(fd, data, bytes, offset);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return fails(FAULT_FILES) ? -1 : (ssize_t)syscall(SYS_pwrite64, fd, data, some(bytes), offset);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset) {
    return pwrite(fd, data, bytes, offset);
}

int fsync(int fd) {
    return fails(FAULT_FILES) ? -1 : (int)syscall(SYS_fsync, fd);
}

int flock(int fd, int operation) {
    return fails(FAULT_FILES) ? -1 : (int)syscall(SYS_flock, fd, operation);
}

NEXT(int, rename, const char *, const char *)
int rename(const char *from, const char *to) {
    return fails(FAULT_FILES) ? -1 : next_rename(from, to);
}

NEXT(int, fstat, int, struct stat *)
int fstat(int fd, struct stat *facts) {
    return fails(FAULT_FILES) ? -1 : next_fstat(fd, facts);
}

/* ------------------------------------------------------------------ reads of the caller's memory */

int madvise(void *address, size_t bytes, int advice) {
    const int result = (int)syscall(SYS_madvise, address, bytes, advice);
    if (advice == MADV_POPULATE_READ) {
        afterRead();
    }
    return result;
}

static atomic_int g_forbidden;

/* From now on, or no more, process_vm_readv is forbidden, as sandboxes do. */
void fault_forbid_reads(int forbidden) {
    atomic_store(&g_forbidden, forbidden);
}

ssize_t process_vm_readv(pid_t pid, const struct iovec *local, unsigned long nlocal, const struct iovec *remote,
                         unsigned long nremote, unsigned long flags) {
    if (atomic_load(&g_forbidden) != 0) {
        errno = EPERM;
        return -1;
    }
    const ssize_t copied = (ssize_t)syscall(SYS_process_vm_readv, pid, local, nlocal, remote, nremote, flags);
    afterRead();
    return copied;
}
