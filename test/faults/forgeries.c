/* Saved caches that lie although all of their hashes are right: no accident makes them, but anybody can. */
#define _GNU_SOURCE
#include "fault_driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { DATA_AT = 4096, MOST_WORDS = 32, LONG = 60000 };

/* What lies in the header, by index. In front of them are the magic and the version. */
enum { IDENTITY_BYTES = 2, INDEX_OFFSET, INDEX_WORDS, INDEX_HASH, FILE_BYTES, HEADER_HASH, HEADER_WORDS };

/* A file of src/runtime/packed_file: header, data, identity, and an index of offset, bytes and hash of each blob. */
typedef struct {
    uint64_t header[HEADER_WORDS];
    char data[1 << 18];
    size_t data_bytes; /* after DATA_AT */
    char identity[4096];
    size_t identity_bytes;
    uint64_t index[MOST_WORDS];
    size_t nwords;
} Forgery;

uint64_t hashOf(const void *data, size_t bytes) {
    const uint64_t odd = 0x9e3779b97f4a7c15u;
    uint64_t lanes[8], hash = bytes;
    for (size_t i = 0; i < 8; ++i) {
        lanes[i] = odd * (2 * i + 1);
    }
    for (size_t at = 0; at < bytes; at += 64) {
        uint64_t words[8] = {0};
        memcpy(words, (const char *)data + at, bytes - at < 64 ? bytes - at : 64);
        for (size_t i = 0; i < 8; ++i) {
            const uint64_t product = (lanes[i] ^ words[i]) * odd;
            lanes[i] = product << 29 | product >> 35;
        }
    }
    for (size_t i = 0; i < 8; ++i) {
        hash = (hash ^ lanes[i]) * odd;
        hash ^= hash >> 32;
    }
    return hash;
}

static void readFile(const char *path, Forgery *f) {
    static char file[sizeof *f];
    FILE *in = fopen(path, "rb");
    const size_t bytes = fread(file, 1, sizeof file, in);
    fclose(in);
    memcpy(f->header, file, sizeof f->header);
    CHECK(bytes == f->header[FILE_BYTES], "the header is another one");
    f->data_bytes = f->header[INDEX_OFFSET] - DATA_AT;
    memcpy(f->data, file + DATA_AT, f->data_bytes);
    f->identity_bytes = f->header[IDENTITY_BYTES];
    memcpy(f->identity, file + f->header[INDEX_OFFSET], f->identity_bytes);
    f->nwords = f->header[INDEX_WORDS];
    memcpy(f->index, file + f->header[INDEX_OFFSET] + f->identity_bytes, f->nwords * sizeof *f->index);
}

/* Makes the header that of the rest. */
static void fillHeader(Forgery *f) {
    const uint64_t both[2] = {hashOf(f->identity, f->identity_bytes), hashOf(f->index, f->nwords * sizeof *f->index)};
    f->header[IDENTITY_BYTES] = f->identity_bytes;
    f->header[INDEX_OFFSET] = DATA_AT + f->data_bytes;
    f->header[INDEX_WORDS] = f->nwords;
    f->header[INDEX_HASH] = hashOf(both, sizeof both);
    f->header[FILE_BYTES] = f->header[INDEX_OFFSET] + f->identity_bytes + f->nwords * sizeof *f->index;
}

static void writeFile(const char *path, Forgery *f) {
    f->header[HEADER_HASH] = hashOf(f->header, HEADER_HASH * sizeof *f->header);
    FILE *out = fopen(path, "wb");
    fwrite(f->header, 1, sizeof f->header, out);
    fseek(out, DATA_AT, SEEK_SET);
    fwrite(f->data, 1, f->data_bytes, out);
    fwrite(f->identity, 1, f->identity_bytes, out);
    fwrite(f->index, sizeof *f->index, f->nwords, out);
    fclose(out);
}

/* Loads a forged file, which has to be refused as what it is, for the memory of a small one. */
static void refuse(const Subject *s, const char *what) {
    static uint32_t tokens[LONG];
    uint32_t length = 77;
    struct rlimit old, small;
    getrlimit(RLIMIT_AS, &old);
    small = old;
    small.rlim_cur = statusField("/proc/self/status", "VmSize:", 10) * 1024 + (16u << 20);
    setrlimit(RLIMIT_AS, &small);
    KVCache *cache = qwen3LoadKVCache(s->model, s->path, tokens, LONG, &length);
    setrlimit(RLIMIT_AS, &old);
    CHECK(cache == NULL, "%s: a forged cache was loaded", what);
    if (cache != NULL) {
        dropKVCache(s->model, cache);
        return;
    }
    const int32_t status = qwen3LastStatus();
    CHECK((status == QWEN3_STATUS_IO_ERROR && strstr(qwen3LastError(), "damaged") != NULL) ||
              status == QWEN3_STATUS_CACHE_MISMATCH,
          "%s: %d %s", what, status, qwen3LastError());
    CHECK(length == 77, "%s: a failed load wrote its length", what);
    CHECK(statsOf(s->model).ncaches == 1, "%s: a cache is left", what);
}

/* forged FOLDER: a small file that says to hold a long cache must not make anybody take memory for it. */
void forged(char **argv) {
    /* A cache of many tokens whose file keeps its tokens but has lost its blocks. */
    char path[4096];
    snprintf(path, sizeof path, "%s/file", argv[0]);
    g_meta.dctx = 1 << 17;
    g_options.kv_limit_bytes = (uint64_t)1 << 40;
    Subject s = {NULL, NULL, path};
    learnExpected();
    openSubject(&s, &kOperations[2]);
    CHECK(doSaveCache(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    static Forgery f;
    readFile(path, &f);
    f.data_bytes = LONG * sizeof(uint32_t);
    memset(f.data, 0, f.data_bytes);
    f.nwords = 3;
    f.index[0] = DATA_AT;
    f.index[1] = f.data_bytes;
    f.index[2] = hashOf(f.data, f.data_bytes);
    fillHeader(&f);
    writeFile(path, &f);
    refuse(&s, "no blocks");
    closeSubject(&s);
}

/* Puts other numbers in the place of one of the file's, a word of f, and loads each file. */
static void refuseOthers(const Subject *s, const Forgery *whole, Forgery *f, uint64_t *word, const char *what) {
    static const uint64_t values[] = {0,
                                      1,
                                      3,
                                      8,
                                      40,
                                      63,
                                      64,
                                      4095,
                                      1u << 20,
                                      UINT32_MAX,
                                      1ull << 32,
                                      1ull << 40,
                                      1ull << 63,
                                      UINT64_MAX,
                                      UINT64_MAX - 63,
                                      UINT64_MAX - DATA_AT + 1};
    enum { NVALUES = sizeof values / sizeof *values };
    for (size_t v = 0; v < 2 * NVALUES; ++v) { /* the value itself, and added to what is there */
        *f = *whole;
        const uint64_t before = *word;
        *word = values[v % NVALUES] + (v < NVALUES ? 0 : before);
        if (*word == before) {
            continue;
        }
        if (word >= f->index && word < f->index + MOST_WORDS) {
            fillHeader(f);
        }
        writeFile(s->path, f);
        char which[96];
        snprintf(which, sizeof which, "%s, value %zu", what, v);
        refuse(s, which);
    }
}

/* forged-each FOLDER: every number of a saved cache's index and header is replaced by others, and its tokens, too. */
void forgedEach(char **argv) {
    char path[4096], what[64];
    snprintf(path, sizeof path, "%s/file", argv[0]);
    Subject s = {NULL, NULL, path};
    learnExpected();
    openSubject(&s, &kOperations[2]);
    CHECK(doSaveCache(&s) == QWEN3_STATUS_SUCCESS, "%s", qwen3LastError());
    static Forgery whole, f;
    readFile(path, &whole);
    for (size_t i = 0; i < whole.nwords; ++i) {
        snprintf(what, sizeof what, "word %zu of the index", i);
        refuseOthers(&s, &whole, &f, &f.index[i], what);
    }
    for (size_t i = IDENTITY_BYTES; i < HEADER_HASH; ++i) {
        snprintf(what, sizeof what, "word %zu of the header", i);
        refuseOthers(&s, &whole, &f, &f.header[i], what);
    }
    for (size_t nwords = 0; nwords <= whole.nwords + 4; ++nwords) { /* an index that ends early, or goes on */
        f = whole;
        f.nwords = nwords;
        for (size_t i = whole.nwords; i < nwords; ++i) {
            f.index[i] = f.index[i % whole.nwords];
        }
        if (nwords != whole.nwords) {
            fillHeader(&f);
            writeFile(path, &f);
            snprintf(what, sizeof what, "an index of %zu words", nwords);
            refuse(&s, what);
        }
    }
    static const uint32_t ids[] = {VOCABULARY, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; ++i) {
        f = whole;
        memcpy(f.data + (HALF - 1) * sizeof *ids, &ids[i], sizeof *ids);
        f.index[2] = hashOf(f.data, HALF * sizeof *ids);
        fillHeader(&f);
        writeFile(path, &f);
        snprintf(what, sizeof what, "token %u", ids[i]);
        refuse(&s, what);
    }
    f = whole;
    fillHeader(&f);
    writeFile(path, &f);
    CHECK(doLoadCache(&s) == QWEN3_STATUS_SUCCESS, "the whole file: %s", qwen3LastError());
    checkUsable(s.model, __LINE__);
    closeSubject(&s);
}
