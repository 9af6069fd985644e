#include "ops/infinicore/routes.h"

#include <cstdlib>
#include <cstring>

#include "ops/infinicore/device/api.h"
#include "ops/infinicore/device/graph.h"
#include "runtime/error.h"

namespace q3::infinicore {
namespace {

struct Name {
    const char *text;
    bool Routes::*route;
};

constexpr Name kNames[] = {
    {"rope_neox", &Routes::rope_neox},
    {"add", &Routes::add},
    {"gemm_add", &Routes::gemm_add},
    {"causal", &Routes::causal},
    {"beta0", &Routes::beta0},
    {"add_rms_norm", &Routes::add_rms_norm},
    {"embedding", &Routes::embedding},
    {"silu_and_mul", &Routes::silu_and_mul},
    {"paged_attention", &Routes::paged_attention},
    {"graphs", &Routes::graphs},
};

}  // namespace

Routes initialRoutes() {
    Routes routes;
    routes.add_rms_norm = Q3_HAS_ADD_RMS_NORM != 0;
    routes.embedding = Q3_HAS_EMBEDDING != 0;
    routes.silu_and_mul = Q3_HAS_SILU_AND_MUL != 0;
    routes.paged_attention = Q3_HAS_PAGED_ATTENTION != 0;
    routes.graphs = Q3_HAS_PAGED_ATTENTION != 0 && graphsKnown();
    const char *list = std::getenv("QWEN3_INFINICORE_AVOID");
    for (const char *at = list == nullptr ? "" : list; *at != '\0';) {
        const size_t length = std::strcspn(at, ",");
        bool known = length == 0;
        for (const Name &name : kNames) {
            if (std::strlen(name.text) == length && std::strncmp(name.text, at, length) == 0) {
                routes.*name.route = false;
                known = true;
            }
        }
        if (!known) {
            fail(QWEN3_STATUS_BAD_PARAM,
                 "QWEN3_INFINICORE_AVOID names \"%.*s\": it may name rope_neox, add, gemm_add, causal, beta0, "
                 "add_rms_norm, "
                 "embedding, silu_and_mul, paged_attention, graphs",
                 static_cast<int>(length), at);
        }
        at += length + (at[length] == ',' ? 1 : 0);
    }
    return routes;
}

bool selfTestWanted() {
    const char *value = std::getenv("QWEN3_INFINICORE_SELF_TEST");
    return value == nullptr || std::strcmp(value, "0") != 0;
}

std::string routesText(const Routes &routes) {
    std::string text;
    for (const Name &name : kNames) {
        if (!(routes.*name.route)) {
            text += text.empty() ? "" : ",";
            text += name.text;
        }
    }
    return text.empty() ? "none" : text;
}

}  // namespace q3::infinicore
