#!/usr/bin/env bash
# Sets up everything that the engine needs inside this repository: Python packages in .venv,
# InfiniCore in .infini, the library in build/. Safe to run again: what is done already is skipped.
set -euo pipefail

usage() {
    cat <<'EOF'
Usage: scripts/setup.sh [--with-server] [--with-chat] [--with-tests] [--with-lint] [--no-infinicore] [--help]

  --with-server    also install what the server needs (starlette, uvicorn)
  --with-chat      also install what makes the chat in the terminal more pleasant (prompt_toolkit)
  --with-tests     also install what the tests need (the server, the chat, pytest, torch, transformers)
  --with-lint      also install the linters (ruff, mypy, clang-format, clang-tidy)
  --no-infinicore  build without InfiniCore: CPU only, through the engine's own kernels

Environment:
  PYTHON           the Python (3.10 or newer) that makes .venv (default: python3)
  INFINI_ROOT      an InfiniCore to use instead of installing one into .infini
  INFINICORE_FLAGS switches for scripts/install_infinicore.py, e.g. "--nv-gpu --ccl"
  CXX              the C++ compiler (default: what xmake finds, g++ or clang++)
EOF
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
log=build/setup.log
sets=()
infinicore=y
for arg in "$@"; do
    case $arg in
        --with-server) sets+=(server) ;;
        --with-chat) sets+=(chat) ;;
        --with-tests) sets+=(server chat test) ;;
        --with-lint) sets+=(lint) ;;
        --no-infinicore) infinicore=n ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            echo "setup: unknown option $arg" >&2
            usage >&2
            exit 2
            ;;
    esac
done

now() { # seconds since the epoch with one decimal, in tenths
    local t=${EPOCHREALTIME/[.,]/}
    echo $((t / 100000))
}

seconds() { # seconds START: the time since START as "12.3 s"
    local t=$(($(now) - $1))
    echo "$((t / 10)).$((t % 10)) s"
}

fail() {
    echo "setup: $*" >&2
    exit 1
}

step() { # step TEXT COMMAND...: runs a command quietly; on failure shows the end of the log
    local text=$1 start status=0
    shift
    start=$(now)
    printf '\n== %s: %s\n' "$text" "$*" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null 9<&- || status=$?
    if ((status)); then
        echo "setup: $text failed (status $status); the end of $log:" >&2
        tail -n 40 "$log" >&2
        exit 1
    fi
    echo "setup: $text ($(seconds "$start"))"
}

begin=$(now)
mkdir -p build
# One set-up at a time in one checkout.
if command -v flock >/dev/null; then
    exec 9<"$root/build"
    flock 9
fi
: >"$log"

# --- What the system has to provide: everything that is missing is named at once. ---------------
check_system() {
    local missing=() packages=() python=${PYTHON:-python3} compiler
    if [[ ! -x .venv/bin/python ]]; then
        if ! command -v "$python" >/dev/null; then
            missing+=("Python 3.10 or newer ($python)")
            packages+=(python3 python3-venv)
        elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
            missing+=("Python 3.10 or newer ($("$python" --version 2>&1) is too old; another one can be named with PYTHON=...)")
            packages+=(python3 python3-venv)
        elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            missing+=("Python's venv module with pip")
            packages+=(python3-venv)
        fi
    elif ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        missing+=("a working .venv with Python 3.10 or newer (remove .venv to have it made anew)")
    fi
    compiler=${CXX:-}
    [[ -n $compiler ]] || compiler=$(command -v g++ || command -v clang++ || true)
    if [[ -z $compiler ]] || ! command -v "${compiler%% *}" >/dev/null; then
        missing+=("a C++17 compiler (g++ 9 or newer, or clang++ 10 or newer)")
        packages+=(g++)
    elif ! echo '#include <optional>
        #include <omp.h>
        int main() { if (std::optional<int> x = omp_get_max_threads(); x) return *x == 0; }' |
        $compiler -std=c++17 -fopenmp -x c++ - -o build/.probe >>"$log" 2>&1; then
        if [[ $compiler == *clang* ]]; then
            missing+=("a C++17 compiler with OpenMP ($compiler does not build a test program)")
            packages+=(g++ libomp-dev)
        else
            missing+=("a C++17 compiler with its library and OpenMP ($compiler does not build a test program)")
            packages+=(g++)
        fi
    fi
    rm -f build/.probe
    ((${#missing[@]})) || return 0
    echo "setup: missing:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    if ((${#packages[@]})); then
        echo "On Debian and Ubuntu: apt-get install -y ${packages[*]}" >&2
    fi
    exit 1
}

# --- Python packages ----------------------------------------------------------------------------
# A stamp per set of requirements holds the hash of its file and the Python that it was installed
# for, so nothing is asked of pip when all of them match.
requirements_key() {
    local hash
    hash=$(sha256sum "scripts/requirements/$1.txt")
    echo "${hash%% *} $(readlink -f .venv/bin/python)"
}

ensure_pip() {
    .venv/bin/python -m pip --version >>"$log" 2>&1 || step "pip" .venv/bin/python -m ensurepip
}

requirements() { # requirements SET...
    local name stamp todo=() arguments=()
    [[ -x .venv/bin/python ]] || step "virtual environment" "${PYTHON:-python3}" -m venv .venv
    for name; do
        stamp=.venv/.$name.stamp
        [[ -f $stamp && $(<"$stamp") == "$(requirements_key "$name")" ]] || todo+=("$name")
    done
    ((${#todo[@]})) || return 0
    ensure_pip
    for name in "${todo[@]}"; do arguments+=(-r "scripts/requirements/$name.txt"); done
    step "Python packages: ${todo[*]}" .venv/bin/python -m pip install --no-input \
        --disable-pip-version-check --progress-bar off "${arguments[@]}"
    for name in "${todo[@]}"; do requirements_key "$name" >".venv/.$name.stamp"; done
}

# The package itself, as an editable installation: whatever .venv's Python runs finds this checkout,
# and .venv/bin has its programs (qwen3, qwen3-server, ...). scripts/build_backend.py makes it in
# about two seconds, from no network and without compiling anything.
package() {
    local stamp=.venv/.package.stamp key
    key=$({
        echo "$root"
        readlink -f .venv/bin/python
        cat pyproject.toml scripts/build_backend.py
        grep QWEN3_VERSION_STRING include/infinicore_infer/models/qwen3.h
    } | sha256sum)
    [[ -f $stamp && $(<"$stamp") == "$key" && -x .venv/bin/qwen3 ]] && return 0
    ensure_pip
    step "package" .venv/bin/python -m pip install --no-input --disable-pip-version-check \
        --progress-bar off --no-build-isolation --no-deps --editable .
    rm -f .venv/lib/python3*/site-packages/infinicore_infer.pth # of earlier versions of this script
    echo "$key" >"$stamp"
}

# --- InfiniCore ---------------------------------------------------------------------------------
# Before gigabytes of packages are fetched: is there what the chosen devices need?
toolkits() {
    local flags=() python=.venv/bin/python
    read -ra flags <<<"${INFINICORE_FLAGS:-}"
    [[ -z ${INFINI_ROOT:-} ]] && ((${#flags[@]})) || return 0
    [[ -x $python ]] || python=${PYTHON:-python3}
    "$python" scripts/install_infinicore.py --check "${flags[@]}" >>"$log" 2>&1 ||
        "$python" scripts/install_infinicore.py --requirements "${flags[@]}" >>"$log" 2>&1 ||
        fail "INFINICORE_FLAGS=\"$INFINICORE_FLAGS\": $(tail -n 1 "$log")"
}

infinicore_root() {
    local flags=()
    if [[ -n ${INFINI_ROOT:-} ]]; then
        [[ -f $INFINI_ROOT/include/infiniop.h && -f $INFINI_ROOT/lib/libinfiniop.so ]] ||
            fail "INFINI_ROOT=$INFINI_ROOT holds no InfiniCore (include/infiniop.h, lib/libinfiniop.so); unset it, or install one there with .venv/bin/python scripts/install_infinicore.py"
        return 0
    fi
    export INFINI_ROOT=$root/.infini
    read -ra flags <<<"${INFINICORE_FLAGS:-}"
    ((${#flags[@]})) || flags=(--if-missing)
    .venv/bin/python scripts/install_infinicore.py --check "${flags[@]}" >>"$log" 2>&1 && return 0
    step "InfiniCore" .venv/bin/python scripts/install_infinicore.py --verbose "${flags[@]}"
}

# --- The library --------------------------------------------------------------------------------
library() {
    local stamp=build/.setup.stamp key sources newer
    sources=$(find xmake.lua include src -type f | LC_ALL=C sort)
    key=$({
        echo "$infinicore ${INFINI_ROOT:-} ${CXX:-} ${CC:-} module"
        echo "$sources"
    } | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$key" ]] && compgen -G 'build/*/*/release/libinfinicore_infer.so' >/dev/null; then
        newer=$(find xmake.lua include src -newer "$stamp" -print -quit)
        if [[ -z $newer && $infinicore == y ]]; then
            # Compiled with its headers; its libraries are found when a model asks for them.
            compgen -G 'build/*/*/release/libinfinicore_infer_infini.so' >/dev/null || newer=module
            [[ -n $newer ]] || newer=$(find "$INFINI_ROOT/include" -newer "$stamp" -print -quit)
        fi
        [[ -n $newer ]] || return 0
    fi
    rm -f "$stamp"
    touch build/.setup.started
    step "configuration" .venv/bin/xmake f -c -y -m release --require=no "--infinicore=$infinicore"
    step "library" .venv/bin/xmake build -y infinicore_infer
    echo "$key" >build/.setup.started.key
    touch -r build/.setup.started build/.setup.started.key
    mv build/.setup.started.key "$stamp"
    rm -f build/.setup.started
}

# xmake refuses to run as root unless told that this is meant, and must not depend on anybody's
# global settings.
((EUID != 0)) || export XMAKE_ROOT=y
export XMAKE_GLOBALDIR=$root/build/xmake XMAKE_COLORTERM=nocolor XMAKE_STATS=n
export HOME=${HOME:-$root/build}

[[ -f build/.setup.stamp && -x .venv/bin/python ]] || check_system
if [[ $infinicore == y ]]; then toolkits; fi
requirements runtime build
package
if [[ $infinicore == y ]]; then infinicore_root; fi
# Further packages come while the library is compiled.
(
    log=build/setup-library.log
    : >"$log"
    library
) &
compiling=$!
requirements ${sets[@]+"${sets[@]}"}
wait "$compiling"
echo "setup: ready ($(seconds "$begin"))"
