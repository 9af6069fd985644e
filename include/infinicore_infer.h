/* Umbrella header of libinfinicore_infer: includes every model's public API. Plain C99, self-contained. */
#ifndef INFINICORE_INFER_H
#define INFINICORE_INFER_H

#include "infinicore_infer/models/qwen3.h"

#endif /* INFINICORE_INFER_H */
