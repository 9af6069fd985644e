/* What fault_driver.c and hostile.c share: the small model, and how checks are counted. */
#pragma once

#include "infinicore_infer/models/qwen3.h"

#include <stdint.h>

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

void report(int passed, int line, const char *format, ...);
#define CHECK(condition, ...) report((condition) != 0, __LINE__, __VA_ARGS__)

Qwen3Model *create(void); /* of the globals above */
void learnExpected(void);
/* Whether the model still computes what it did, in a cache of its own. Not for several threads at once. */
void checkUsable(Qwen3Model *model, int line);
/* Ends the process when a call hangs. */
void within(unsigned seconds);
unsigned long long statusField(const char *path, const char *name, int base);

/* Commands of hostile.c. */
void garbage(char **argv);
void crowd(char **argv);
void interrupted(char **argv);
void forkAmidCreate(char **argv);
void processLimits(char **argv);
