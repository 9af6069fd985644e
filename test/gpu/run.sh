#!/usr/bin/env bash
# Checks and measures the library on a device, step by step, and prints one table last (test/gpu/measure.py).
set -uo pipefail

usage() {
    cat <<'END'
Usage: test/gpu/run.sh [--device NAME] [--no-build] [--only STEP,...] [arguments of test/gpu/measure.py]

  --device NAME   nvidia (default), another device of InfiniCore, or cpu: a dry run with tiny settings
  --no-build      use what .venv, .infini (or INFINI_ROOT) and build/ hold
  --only STEPS    some of: self-test text parity limits decode prefill lean leak original devices

In a pack (test/gpu/pack.sh) nothing is built or fetched: it needs the driver, Python 3.10 or newer, and CUDA's
libcudart and libcublas of the version that the pack was built with (a toolkit, or the packages that torch brings).
In a checkout it needs a C++ compiler and pip's package index, and builds first.

Every step has its own time limit and the next one runs whatever became of it; all together take at most SECONDS
(default 580). The exit status is 1 when a step failed or a result is wrong.

Environment:
  INFINICORE_FLAGS  switches for scripts/install_infinicore.py (default for nvidia: "--nv-gpu", with several GPUs
                    "--nv-gpu --ccl"); "--nv-gpu --toolkit pypi" needs no CUDA toolkit
  SECONDS_IN_ALL    time for all steps
END
}

fail() {
    echo "gpu/run.sh: $*" >&2
    exit 1
}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
device=nvidia
build=y
only=
rest=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --device)
            device=${2:?--device needs a name}
            shift
            ;;
        --only)
            only=${2:?--only needs steps}
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
total=${SECONDS_IN_ALL:-580}
begin=$EPOCHSECONDS

# --- what it runs with ------------------------------------------------------------------------
in_pack() { # everything prebuilt lies in pack/
    python=$(command -v python3) || fail "python3 is not there"
    INFINI_ROOT=$root/pack/infinicore
    INFINICORE_INFER_LIB=$root/pack/lib/libinfinicore_infer.so
    export INFINI_ROOT INFINICORE_INFER_LIB
    counter=$INFINI_ROOT/lib/launch_counter.so
    # Packages that this Python lacks come from the pack's wheels; a wheel is an archive of the package.
    local site=$root/build/site module wheel
    mkdir -p "$site"
    PYTHONPATH=$site:$root/scripts
    export PYTHONPATH
    for module in numpy tokenizers markupsafe jinja2; do
        "$python" -c "import $module" 2>/dev/null && continue
        for wheel in "$root"/pack/wheels/"$module"-*.whl; do
            [[ -f $wheel ]] && "$python" -m zipfile -e "$wheel" "$site"
        done
        "$python" -c "import $module" 2>/dev/null || echo "gpu/run.sh: no $module for $("$python" --version)" >&2
    done
    # CUDA's libraries: the loader's own, a toolkit's, or those of Python packages.
    local folder found= loads
    loads="import ctypes
for name in 'infinirt', 'infiniop':
    ctypes.CDLL('$INFINI_ROOT/lib/lib' + name + '.so')"
    for folder in "" /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 $("$python" -c '
import glob, sys
for path in sys.path:
    print(*glob.glob(path + "/nvidia/cu*/lib"), *glob.glob(path + "/nvidia/cublas/lib"))'); do
        if LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-} "$python" -c "$loads" 2>/dev/null; then
            export LD_LIBRARY_PATH=$folder:${LD_LIBRARY_PATH:-}
            found=y
            break
        fi
    done
    [[ -n $found ]] || "$python" -c "$loads" ||
        fail "InfiniCore of this pack does not load: it needs $(cat pack/needs), found nowhere"
}

in_checkout() {
    local gpus flags infini
    if [[ $build == y ]]; then
        if [[ $device == nvidia && -z ${INFINI_ROOT:-} ]]; then
            command -v nvidia-smi >/dev/null ||
                fail "nvidia-smi is not there: install NVIDIA's driver (dry run: --device cpu)"
            gpus=$(nvidia-smi -L | grep -c '^GPU' || true)
            ((gpus > 0)) || fail "nvidia-smi -L lists no GPU (dry run: --device cpu)"
            flags=--nv-gpu
            ((gpus == 1)) || flags+=" --ccl"
            export INFINICORE_FLAGS=${INFINICORE_FLAGS:-$flags}
        elif [[ $device != cpu && -z ${INFINICORE_FLAGS:-}${INFINI_ROOT:-} ]]; then
            fail "set INFINICORE_FLAGS to what scripts/install_infinicore.py needs for $device, or INFINI_ROOT"
        fi
        scripts/setup.sh || exit 1
        begin=$EPOCHSECONDS
    fi
    infini=${INFINI_ROOT:-$root/.infini}
    python=$root/.venv/bin/python
    [[ -x $python && -f $infini/include/infiniop.h ]] ||
        fail "no .venv, or no InfiniCore in $infini: run this without --no-build"
    counter=$root/build/launch_counter.so
    bash test/gpu/counter.sh "$infini" "$counter" || fail "the launch counter does not build"
}

if [[ -d pack ]]; then in_pack; else in_checkout; fi
export OMP_WAIT_POLICY=passive
if [[ $device == cpu ]]; then
    rest=(--model tiny --batch 1 3 --prompt 40 --past 20 --steps 3 --prefill 32 --copy 16 --gemm 96
        --leak-steps 20 "${rest[@]}")
fi

# --- the steps --------------------------------------------------------------------------------
mkdir -p build
table=build/gpu_table.md
: >"$table"
status=0
step() { # step NAME SECONDS [VARIABLE=VALUE ...] -- ARGUMENTS...
    local name=$1 limit=$2 left variables=() code=0
    shift 2
    while [[ $1 != -- ]]; do
        variables+=("$1")
        shift
    done
    shift
    [[ -z $only || ,$only, == *,$name,* ]] || return 0
    left=$((total - (EPOCHSECONDS - begin)))
    if ((left < 5)); then
        echo "| step $name | not run | no time is left of $total s |" >>"$table"
        return 0
    fi
    ((limit < left)) || limit=$left
    local start=$EPOCHSECONDS
    env LD_PRELOAD="$counter" "${variables[@]}" timeout -k 5 "$limit" "$python" test/gpu/measure.py "$@" \
        --device "$device" "${rest[@]}" >build/gpu_rows 2>build/gpu_errors </dev/null || code=$?
    grep '^|' build/gpu_rows >>"$table"
    if ((code)); then
        status=1
        local why
        why=$(grep -v '^ *$' build/gpu_errors | tail -n 1 | tr '|' '/')
        ((code != 124 && code != 137)) || why="took more than $limit s; $why"
        echo "| step $name | FAILED | status $code; $why |" >>"$table"
    fi
    echo "gpu/run.sh: $name ($((EPOCHSECONDS - start)) s)"
}

if [[ $device == nvidia ]] && command -v nvidia-smi >/dev/null; then
    timeout 20 nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader || true
fi
step self-test 60 -- self-test
step text 60 -- text
step parity 90 NVIDIA_TF32_OVERRIDE=0 -- parity
step limits 40 -- limits
step decode 120 -- decode
step prefill 120 -- prefill
step lean 150 -- lean
step leak 60 -- leak
if [[ -d pack/original ]]; then # InfiniCore's own kernels, without what the installer mends in them
    step original 120 INFINI_ROOT="$root/pack/original" \
        LD_PRELOAD="$root/pack/original/lib/launch_counter.so" -- prefill --title "original kernels, "
fi
step devices 90 -- devices

echo
echo "$device; ${rest[*]:-default settings}; $((EPOCHSECONDS - begin)) s in all"
printf '\n| what | result | remark |\n|---|---|---|\n'
cat "$table"
exit "$status"
