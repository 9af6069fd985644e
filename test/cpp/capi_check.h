/* What the C tests of the API check with. C99; include it first, in one file of a program. */
#define _POSIX_C_SOURCE 200809L

#include "infinicore_infer/models/qwen3.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int g_checks = 0, g_failures = 0;
static pthread_mutex_t g_report_lock = PTHREAD_MUTEX_INITIALIZER;

static void report(int passed, const char *file, int line, const char *format, ...) {
    pthread_mutex_lock(&g_report_lock);
    ++g_checks;
    if (!passed) {
        va_list args;
        va_start(args, format);
        ++g_failures;
        fprintf(stderr, "%s:%d: ", file, line);
        vfprintf(stderr, format, args);
        fputc('\n', stderr);
        va_end(args);
    }
    pthread_mutex_unlock(&g_report_lock);
}

#define CHECK(condition) report((condition) != 0, __FILE__, __LINE__, "%s is false", #condition)

/* Checks the status of a failed call and that its message contains every string of `words` (separated by '|'). */
static void checkFailure(int line, const char *what, int32_t status, const int32_t *expected, const char *words) {
    const char *message = qwen3LastError();
    int status_ok = 0;
    for (const int32_t *e = expected; *e != 0; ++e) {
        status_ok |= status == *e;
    }
    report(status_ok, __FILE__, line, "%s: got %s, want %s (message: %s)", what, qwen3StatusName(status),
           qwen3StatusName(expected[0]), message);
    report(qwen3LastStatus() == status, __FILE__, line, "%s: qwen3LastStatus is %s, the call returned %s", what,
           qwen3StatusName(qwen3LastStatus()), qwen3StatusName(status));
    report(message[0] != '\0' && strchr(message, '\n') == NULL, __FILE__, line, "%s: message is not one line: \"%s\"",
           what, message);
    char copy[256], *state = NULL;
    snprintf(copy, sizeof(copy), "%s", words);
    for (char *word = strtok_r(copy, "|", &state); word != NULL; word = strtok_r(NULL, "|", &state)) {
        report(strstr(message, word) != NULL, __FILE__, line, "%s: message lacks \"%s\": %s", what, word, message);
    }
}

/* The first status is the documented one; a second is for what the header leaves open. */
#define STATUS(a) ((const int32_t[]){QWEN3_STATUS_##a, 0})
#define STATUS2(a, b) ((const int32_t[]){QWEN3_STATUS_##a, QWEN3_STATUS_##b, 0})
