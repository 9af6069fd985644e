/* What the files of the driver share: the small model, operations on it, and how checks are counted. */
#pragma once

#include "infinicore_infer/models/qwen3.h"

#include <stdint.h>

/* Only fault_main is anybody else's: inject.c, which is loaded before, has functions of the same names. */
#pragma GCC visibility push(hidden)

typedef struct Qwen3Model Qwen3Model;
typedef struct KVCache KVCache;

enum { NLAYER = 2, WIDTH = 32, HEADS = 4, KV_HEADS = 2, HEAD = 16, INNER = 48, CONTEXT = 64, VOCABULARY = 100 };
enum { NPROMPT = 20, HALF = NPROMPT / 2 };

extern Qwen3Meta g_meta;
extern Qwen3Weights g_weights;
extern Qwen3ModelOptions g_options;
extern int32_t g_ndev;
extern int g_checks, g_failures;
extern uint32_t g_prompt[NPROMPT];
extern float g_expected[NPROMPT * VOCABULARY]; /* logits of the prompt, once learnExpected was called */
extern float g_logits[NPROMPT * VOCABULARY];   /* the latest */

void report(int passed, int line, const char *format, ...);
#define CHECK(condition, ...) report((condition) != 0, __LINE__, __VA_ARGS__)

Qwen3Model *create(void); /* of the globals above */
void learnExpected(void);
/* Whether the model still computes what it did, in a cache of its own. Not for several threads at once. */
void checkUsable(Qwen3Model *model, int line);
/* Ends the process when a call hangs. */
void within(unsigned seconds);
unsigned long long statusField(const char *path, const char *name, int base);

/* The model: its tensors lie in one piece of memory, and learnExpected needs what setUp has made. */
void setUp(void);
size_t tensorFloats(void);
void fillTensors(float *at);
void placeTensors(const float *at);
int32_t forward(Qwen3Model *model, KVCache *cache, uint32_t pos, uint32_t ntok);
int sameLogits(uint32_t pos, uint32_t ntok);
Qwen3Stats statsOf(Qwen3Model *model);
void setBackend(const char *name);
int32_t formatNamed(const char *name);

/* Functions of inject.c, which fault_main looks up. */
enum { FAULT_MEMORY = 1, FAULT_FILES = 2, FAULT_SHORT = 4 };
extern void (*fault_arm)(int kind, long nth, int error, int all);
extern int (*fault_disarm)(void);
extern long (*fault_live_blocks)(void);
extern long (*fault_left)(void);
extern void (*fault_after_read)(void (*hook)(void), long nth);
extern void (*fault_forbid_reads)(int forbidden);

/* What an operation works on. */
typedef struct {
    Qwen3Model *model;
    KVCache *cache; /* holds the first half of the prompt */
    char *path;     /* to write to, or to read from */
} Subject;

typedef struct {
    const char *name;
    int32_t (*run)(Subject *);
    int has_model, fresh; /* the model exists before; a new one for every fault */
} Operation;

extern const Operation kOperations[];
void openSubject(Subject *s, const Operation *operation);
void closeSubject(Subject *s);
int32_t doSaveCache(Subject *s);
int32_t doLoadCache(Subject *s);
int32_t doSaveWeights(Subject *s);
int countEntries(const char *folder);
uint64_t hashOf(const void *data, size_t bytes); /* hashBytes of src/runtime */

/* Commands of hostile.c. */
void garbage(char **argv);
void crowd(char **argv);
void interrupted(char **argv);
void forkAmidCreate(char **argv);
void processLimits(char **argv);

/* Commands of sweeps.c. */
void sweep(char **argv);
void fingerprintWithoutMemory(char **argv);

/* Commands of process.c. */
void forks(char **argv);
void signals(char **argv);
void floats(char **argv);
void locales(char **argv);
void cancelled(char **argv);

/* Commands of files.c. */
void writeForEver(char **argv);
void afterKill(char **argv);
void damage(char **argv);
void limits(char **argv);
void saveFor(char **argv);
void loadFrom(char **argv);

/* Commands of forgeries.c. */
void forged(char **argv);
void forgedEach(char **argv);

/* Commands of cut_files.c. */
void truncated(char **argv);
void sandbox(char **argv);
void truncatedEach(char **argv);

#pragma GCC visibility pop
