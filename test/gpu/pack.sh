#!/usr/bin/env bash
# Packs what test/gpu/run.sh needs on a machine with NVIDIA GPUs and without a network, below 60 MB: our libraries and
# InfiniCore's, built here, the package, the demo model, and wheels of what Python may lack there.
# Usage: test/gpu/pack.sh OUTPUT.tar.gz [ARCHITECTURE ...]        (default: sm_90)
#        PYTHONS="3.10 3.12" in the environment: for these versions of Python (default: .venv's)
set -euo pipefail

output=$(realpath -m "${1:?Usage: test/gpu/pack.sh OUTPUT.tar.gz [ARCHITECTURE ...]}")
shift
(($#)) || set -- sm_90
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
work=$root/build/with-cuda
python=$root/.venv/bin/python
most=60

bash test/gpu/with_cuda.sh "$@"
IFS=, architectures="$*"
unset IFS
# Once more with InfiniCore's own kernels, to see what mending them brings.
"$python" scripts/install_infinicore.py --nv-gpu --toolkit pypi --cuda-arch "$architectures" --operators used \
    --kernels original --prefix "$work/original" --jobs "${JOBS:-$(nproc)}"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
tree=$folder/infinicore_infer_gpu
mkdir -p "$tree"/pack/{lib,infinicore/lib,original/lib,wheels} "$tree"/test/{gpu,data}
cp "$work/build/linux/$(uname -m)"/release/libinfinicore_infer{,_infini}.so "$tree/pack/lib/"
cp "$work"/infinicore/lib/*.so "$tree/pack/infinicore/lib/"
cp "$work"/original/lib/*.so "$tree/pack/original/lib/"
for name in infinicore original; do # with the libraries that lie beside it there
    bash test/gpu/counter.sh "$work/$name" "$tree/pack/$name/lib/launch_counter.so" "\$ORIGIN"
done
readelf -d "$work/infinicore/lib/libinfiniop.so" | sed -n 's/.*NEEDED.*\[\(libcu.*\)\]/\1/p' | xargs >"$tree/pack/needs"
cp -r scripts include xmake.lua "$tree/" # xmake.lua: by it the package knows that this is the repository's layout
cp test/gpu/{run.sh,measure.py,device.py} "$tree/test/gpu/"
cp -r test/data/qwen3-tiny "$tree/test/data/"
find "$tree" -name __pycache__ -type d -prune -exec rm -rf {} +
for version in ${PYTHONS:-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}; do
    grep -E '^(numpy|tokenizers|jinja2|markupsafe)==' scripts/requirements/runtime.txt >"$folder/requirements.txt"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        --platform any -r "$folder/requirements.txt" -d "$tree/pack/wheels"
done
tar -C "$folder" -czf "$output" infinicore_infer_gpu
size=$(du -m "$output" | cut -f1)
echo "pack: $output, $size MB for $architectures: unpack it there and run test/gpu/run.sh"
((size < most)) || {
    echo "pack: it is larger than $most MB: name fewer architectures or versions of Python" >&2
    exit 1
}
