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
  INFINICORE_FLAGS  switches for scripts/install_infinicore.py (default for nvidia: "--nv-gpu", with
                    several GPUs "--nv-gpu --ccl")

Needs the driver, a C++ compiler, Python 3.10, a CUDA toolkit of 11.x or 12.x (nvcc), and with several GPUs
NCCL; the default models (0.6b and 8b) need 20 GB of host and of device memory: "--model 0.6b" needs 3.
Packages come from pip. The exit status is not 0 when a result is wrong.
END
}

fail() {
    echo "gpu/run.sh: $*" >&2
    exit 1
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
    if [[ $device == nvidia && -z ${INFINI_ROOT:-} ]]; then
        command -v nvidia-smi >/dev/null || fail "nvidia-smi is not there: install NVIDIA's driver (dry run: --device cpu)"
        gpus=$(nvidia-smi -L | grep -c '^GPU' || true)
        ((gpus > 0)) || fail "nvidia-smi -L lists no GPU (dry run: --device cpu)"
        flags=--nv-gpu
        ((gpus == 1)) || flags+=" --ccl"
        export INFINICORE_FLAGS=${INFINICORE_FLAGS:-$flags}
    elif [[ $device != cpu && -z ${INFINICORE_FLAGS:-}${INFINI_ROOT:-} ]]; then
        fail "set INFINICORE_FLAGS to what scripts/install_infinicore.py needs for $device, or INFINI_ROOT"
    fi
    scripts/setup.sh --with-tests
fi
root=${INFINI_ROOT:-$PWD/.infini}
[[ -x .venv/bin/python && -f $root/include/infiniop.h ]] ||
    fail "no .venv, or no InfiniCore in $root: run this without --no-build"
counter=build/launch_counter.so
mkdir -p build
# Linked, so that the real functions are where the counter looks for them.
${CXX:-c++} -std=c++17 -shared -fPIC -O1 -isystem "$root/include" test/gpu/launch_counter.cpp -o "$counter" -ldl \
    -L"$root/lib" -Wl,--no-as-needed,-rpath,"$root/lib" -linfiniop -linfinirt -lgomp

if [[ $device == nvidia ]] && command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
fi
if [[ $device == cpu ]]; then
    export OMP_WAIT_POLICY=passive
    rest=(--model tiny --batch 1 3 --prompt 40 --past 20 --steps 3 --prefill 32 --copy 16 --gemm 96 "${rest[@]}")
fi
LD_PRELOAD=$PWD/$counter PYTHONPATH=scripts:test exec .venv/bin/python test/gpu/measure.py --device "$device" "${rest[@]}"
