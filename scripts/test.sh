#!/usr/bin/env bash
# Runs all checks: builds the tests, lints the sources, then runs pytest, which also drives the
# C and C++ tests. Several processes of pytest share the files; -n 0 has one run them all in order.
# Usage: scripts/test.sh [--no-lint] [--with-cuda] [PYTEST ARGUMENTS]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
lint=y
cuda=n
arguments=()
for arg in "$@"; do
    case $arg in
        --no-lint) lint=n ;;
        --with-cuda) cuda=y ;;
        -h | --help)
            echo "Usage: scripts/test.sh [--no-lint] [--with-cuda] [PYTEST ARGUMENTS]"
            echo "  --with-cuda  also compile for NVIDIA GPUs with a toolkit from the package index (1 GB, needs no GPU)"
            exit 0
            ;;
        *) arguments+=("$arg") ;;
    esac
done

log=build/test.log
failures=()

check() { # check TEXT COMMAND...: a quiet check; its output is shown when it fails
    local text=$1 start=$EPOCHSECONDS
    shift
    if "$@" >"$log" 2>&1 </dev/null; then
        echo "test: $text ($((EPOCHSECONDS - start)) s)"
    else
        failures+=("$text")
        echo "test: $text FAILED; the end of its output:" >&2
        tail -n 60 "$log" >&2
    fi
}

cpp_files() { # the C and C++ sources, NUL-separated, of the folders given
    find "$@" -type f \( -name '*.cpp' -o -name '*.cc' -o -name '*.c' -o -name '*.h' -o -name '*.hpp' \) -print0 2>/dev/null |
        LC_ALL=C sort -z
}

check_format() {
    cpp_files src include test | xargs -0 -r .venv/bin/clang-format --dry-run -Werror
}

# clang-tidy is by far the slowest check: a file is looked at again only when it, a header, or the
# configuration changed since it passed. The flags are those of the release build.
check_tidy() {
    local database=build/tidy common file key
    mkdir -p "$database/passed"
    .venv/bin/xmake project -k compile_commands "$database" || return 1
    common=$({
        cat .clang-tidy xmake.lua scripts/requirements/lint.txt
        find src include -name '*.h' -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
    } | sha256sum)
    export common database
    find src -name '*.cpp' -print0 | LC_ALL=C sort -z |
        xargs -0 -r -n 1 -P "$(nproc)" bash -c '
            key=$({ echo "$common"; sha256sum "$1"; } | sha256sum)
            stamp=$database/passed/${key%% *}
            [[ -e $stamp ]] && exit 0
            grep -qF "\"$1\"" "$database/compile_commands.json" || exit 0 # of another architecture
            .venv/bin/clang-tidy --quiet -p "$database" "$1" && touch "$stamp"
        ' _
}

setup=(--with-tests)
[[ $lint == n ]] || setup+=(--with-lint)
bash scripts/setup.sh "${setup[@]}"

# As in setup.sh.
((EUID != 0)) || export XMAKE_ROOT=y
export XMAKE_GLOBALDIR=$root/build/xmake XMAKE_COLORTERM=nocolor XMAKE_STATS=n
export HOME=${HOME:-$root/build} INFINI_ROOT=${INFINI_ROOT:-$root/.infini}
# InfiniCore's and torch's OpenMP threads would otherwise spin while others want the CPUs.
export OMP_WAIT_POLICY=passive

check "configuration" .venv/bin/xmake f -c -y -m release --require=no --infinicore=y
check "C and C++ tests built" .venv/bin/xmake build -y -g tests
check "fake devices built" .venv/bin/xmake build -y -g fake
((${#failures[@]} == 0)) || exit 1
if [[ $lint == y ]]; then
    check "ruff check" .venv/bin/ruff check
    check "ruff format" .venv/bin/ruff format --check
    check "mypy" .venv/bin/mypy
    check "clang-format" check_format
    check "clang-tidy" check_tidy
    if ((${#failures[@]})); then
        printf 'test: failed: %s\n' "${failures[@]}" >&2
        exit 1
    fi
fi
# In a process of its own: its InfiniCore is another one.
if [[ $cuda == y ]]; then bash test/gpu/with_cuda.sh; fi
# One process more than there are CPUs, as tests also wait: for servers, compilers, ends of time. A file's tests
# stay together, since they share what is slow to make, and files begin in their order: what compiles comes first.
processes=$(($(nproc) + 1))
distribution=(-n $((processes < 9 ? processes : 9)) --dist loadfile --no-loadscope-reorder)
# A crash ends the run after a few more tries, and a test that takes ten minutes shows where it is.
distribution+=(--max-worker-restart 3 -o faulthandler_timeout=600)
exec .venv/bin/python -m pytest test "${distribution[@]}" ${arguments[@]+"${arguments[@]}"}
