#!/usr/bin/env bash
# Builds InfiniCore 0.1.0 and our module for NVIDIA GPUs with a CUDA toolkit of PyPI's packages, and looks at the
# result; needs no GPU. What is built stays in build/with-cuda, so a second run only looks.
# Usage: test/gpu/with_cuda.sh [ARCHITECTURE ...]      (default: sm_90; also what scripts/test.sh --with-cuda runs)
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
(($#)) || set -- sm_90
work=$root/build/with-cuda
prefix=$work/infinicore
toolkit=$root/build/cuda
python=$root/.venv/bin/python
library=$work/build/linux/$(uname -m)/release/libinfinicore_infer.so
jobs=${JOBS:-$(nproc)}
mkdir -p "$work"
failed=0

fail() {
    echo "with-cuda: FAILED: $*" >&2
    failed=1
}

step() { # step TEXT COMMAND...: its output is shown when it fails
    local text=$1 start=$EPOCHSECONDS
    shift
    if "$@" >"$work/log" 2>&1 </dev/null; then
        echo "with-cuda: $text ($((EPOCHSECONDS - start)) s)"
    else
        fail "$text; the end of its output:"
        tail -n 40 "$work/log" >&2
        exit 1
    fi
}

size() { # of a folder or file, in MB
    du -smL "$1" | cut -f1
}

IFS=, architectures="$*"
step "InfiniCore 0.1.0 for $architectures" "$python" scripts/install_infinicore.py --nv-gpu --toolkit pypi \
    --toolkit-dir "$toolkit" --cuda-arch "$architectures" --prefix "$prefix" --jobs "$jobs"
unset IFS
echo "with-cuda: the toolkit has $(size "$toolkit") MB, libinfiniop.so $(size "$prefix/lib/libinfiniop.so") MB"
step "kernels that we launch are in libinfiniop.so" "$python" test/gpu/kernels.py "$toolkit/bin/cuobjdump" \
    "$prefix/lib/libinfiniop.so" "$@"
sed 's/^/with-cuda: /' "$work/log"

export INFINI_ROOT=$prefix OMP_WAIT_POLICY=passive
((EUID != 0)) || export XMAKE_ROOT=y
export XMAKE_GLOBALDIR=$work/global XMAKE_CONFIGDIR=$work/config XMAKE_COLORTERM=nocolor XMAKE_STATS=n
configure() {
    .venv/bin/xmake f -y -m release --require=no --infinicore=y -o "$work/build"
}
build() {
    .venv/bin/xmake build -y -j "$jobs" infinicore_infer
}
step "configuration" configure
step "library and module against it" build
export INFINICORE_INFER_LIB=$library

# Without a driver each of these says what is missing and goes on; with one they work.
expect() { # expect TEXT PATTERN COMMAND...: ends by itself, with 0 or with an error that says PATTERN
    local text=$1 pattern=$2 status=0
    shift 2
    "$@" >"$work/log" 2>&1 </dev/null || status=$?
    if ((status == 0)); then
        echo "with-cuda: $text: works"
    elif ((status < 128)) && grep -qE "$pattern" "$work/log"; then
        echo "with-cuda: $text: $(grep -E "$pattern" "$work/log" | tail -n 1)"
    else
        fail "$text: status $status, and nothing like \"$pattern\":"
        tail -n 20 "$work/log" >&2
    fi
}
answer() { # answer ARGUMENTS...: the tokens of an answer of the demo model
    "$python" scripts/qwen3.py --model-path test/data/qwen3-tiny --json --temperature 0 --max-tokens 16 \
        --prompt "What is the capital of France?" "$@" 2>"$work/log" | sed -n 's/.*\("tokens": \[[^]]*\]\).*/\1/p'
}
expect "qwen3-doctor" "InfiniCore could not count devices|no device" "$python" -m infinicore_infer.tools.doctor
expect "--device nvidia" "is the driver there|sees 0 nvidia devices" "$python" scripts/qwen3.py \
    --model-path test/data/qwen3-tiny --device nvidia --prompt Hi --max-tokens 4
own=$(answer --device cpu)
through=$(answer --device cpu --backend infinicore)
if [[ -n $own && $own == "$through" ]]; then
    echo "with-cuda: the CPU through that build gives the tokens of our own kernels"
else
    fail "the CPU through that build: $through, our own kernels: $own"
    tail -n 20 "$work/log" >&2
fi
exit "$failed"
