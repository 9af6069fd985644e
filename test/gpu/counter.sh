#!/usr/bin/env bash
# Compiles launch_counter.cpp: counter.sh INFINICORE_PREFIX OUTPUT [RUN_PATH]
set -euo pipefail
# Linked, so that the real functions are where the counter looks for them.
exec ${CXX:-c++} -std=c++17 -shared -fPIC -O1 -isystem "$1/include" "$(dirname "${BASH_SOURCE[0]}")/launch_counter.cpp" \
    -o "$2" -ldl -L"$1/lib" -Wl,--no-as-needed,--allow-shlib-undefined,-rpath,"${3:-$1/lib}" -linfiniop -linfinirt -lgomp
