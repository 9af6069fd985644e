#!/usr/bin/env bash
# Builds for a device, then checks and measures the library there; prints one table (test/gpu/measure.py).
set -euo pipefail

usage() {
    cat <<'END'
Usage: test/gpu/run.sh [--device NAME] [--no-build] [arguments of test/gpu/measure.py]

  --device NAME   nvidia (default), another device of InfiniCore, or cpu: a dry run in a minute with
                  tiny settings, to see that the script itself works
  --no-build      use what .venv, .infini (or INFINI_ROOT) and build/ hold

Environment:
  INFINICORE_FLAGS  switches for scripts/install_infinicore.py (default for nvidia: "--nv-gpu --ccl")

Needs 20 GB of device memory with the default models (0.6b and 8b), a CUDA toolkit up to 12.x for
InfiniCore 0.1.0, and the test packages. The exit status is not 0 when a result is wrong.
END
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
device=nvidia
build=y
rest=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --device)
            device=${2:?--device needs a name}
            shift
            ;;
        --no-build) build=n ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) rest+=("$1") ;;
    esac
    shift
done

if [[ $build == y ]]; then
    if [[ $device == nvidia ]]; then
        export INFINICORE_FLAGS=${INFINICORE_FLAGS:---nv-gpu --ccl}
    fi
    scripts/setup.sh --with-tests
fi
root=${INFINI_ROOT:-$PWD/.infini}
counter=build/launch_counter.so
mkdir -p build
# Linked, so that the real functions are where the counter looks for them.
c++ -std=c++17 -shared -fPIC -O1 -isystem "$root/include" test/gpu/launch_counter.cpp -o "$counter" -ldl \
    -L"$root/lib" -Wl,--no-as-needed,-rpath,"$root/lib" -linfiniop -linfinirt -lgomp

if [[ $device == nvidia ]]; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
fi
if [[ $device == cpu ]]; then
    export OMP_WAIT_POLICY=passive
    rest=(--model tiny --batch 1 3 --prompt 40 --past 20 --steps 3 --prefill 32 --copy 16 --gemm 96 "${rest[@]}")
fi
LD_PRELOAD=$PWD/$counter PYTHONPATH=scripts:test exec .venv/bin/python test/gpu/measure.py --device "$device" "${rest[@]}"
