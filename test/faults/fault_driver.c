/*
 * A small model of the C API and what is done to it: faults injected by inject.c, forks, signals, odd floating-point
 * environments and locales. A shared library, so that programs load it as they load bindings: with dlopen, see
 * test_faults.py, which calls fault_main(argc, argv).
 *
 * Every command prints what failed and a summary; its result is the number of failures.
 */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int fault_main(int argc, char **argv) {
    const struct {
        const char *name;
        void (*run)(char **);
        int nargs;
    } commands[] = {
        {"sweep", sweep, 8},
        {"fingerprint-without-memory", fingerprintWithoutMemory, 0},
        {"fork", forks, 1},
        {"signals", signals, 1},
        {"floats", floats, 3},
        {"locale", locales, 2},
        {"write", writeForEver, 1},
        {"after-kill", afterKill, 1},
        {"damage", damage, 3},
        {"limits", limits, 1},
        {"truncate", truncated, 5},
        {"truncate-each", truncatedEach, 5},
        {"forged", forged, 1},
        {"forged-each", forgedEach, 1},
        {"sandbox", sandbox, 3},
        {"save", saveFor, 1},
        {"load", loadFrom, 1},
        {"cancel", cancelled, 0},
        {"garbage", garbage, 1},
        {"crowd", crowd, 0},
        {"interrupted", interrupted, 1},
        {"fork-create", forkAmidCreate, 0},
        {"process-limits", processLimits, 1},
    };
    *(void **)&fault_arm = dlsym(RTLD_DEFAULT, "fault_arm");
    *(void **)&fault_disarm = dlsym(RTLD_DEFAULT, "fault_disarm");
    *(void **)&fault_forbid_reads = dlsym(RTLD_DEFAULT, "fault_forbid_reads");
    *(void **)&fault_left = dlsym(RTLD_DEFAULT, "fault_left");
    *(void **)&fault_after_read = dlsym(RTLD_DEFAULT, "fault_after_read");
    *(void **)&fault_live_blocks = dlsym(RTLD_DEFAULT, "fault_live_blocks");
    setUp();
    (void)createKVCache(NULL); /* the thread's first error, whose text stays allocated */
    for (size_t i = 0; i < sizeof commands / sizeof *commands; ++i) {
        if (argc >= 1 && strcmp(commands[i].name, argv[0]) == 0 && argc == 1 + commands[i].nargs) {
            commands[i].run(argv + 1);
            printf("%s: %d checks, %d failed\n", argv[0], g_checks, g_failures);
            fflush(NULL);
            return g_failures;
        }
    }
    fprintf(stderr, "unknown command\n");
    return 1;
}
