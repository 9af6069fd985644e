"""Whether a libinfiniop.so has every kernel that we launch, as code for the architectures named.

    python test/gpu/kernels.py TOOLKIT/bin/cuobjdump PREFIX/lib/libinfiniop.so sm_90 [sm_80 ...]

A kernel that is not there does nothing and says nothing when InfiniCore launches it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence

TYPES = ("__half", "__nv_bfloat16", "float")


def launched() -> list[str]:
    """What the demangled names begin with; products are cuBLAS's."""
    names = []
    for dtype in TYPES:
        names += [f"void causalSoftmax<1024u, {dtype}, float>"]
        for operator in ("add::cuda::AddOp", "swiglu::cuda::SwiGLUOp"):
            names += [
                f"void op::elementwise::nvidia::elementwiseKernel<2ul, op::{operator}, {dtype}>"
            ]
        for form in ("false", "true"):
            names += [f"void ropeThreadPerItemKernel<{form}, {dtype}, int, {dtype}>"]
        for weights in {dtype, "float"}:
            for threads in (128, 1024):  # norms of heads, norms of rows
                names += [f"void rmsnormKernel<{threads}u, float, {dtype}, {weights}>"]
    # 2 to 32 bytes at a time, up to three dimensions.
    for unit in ("uchar2", "float1", "float2", "float4", "double4"):
        for block in (1, 2, 3):
            for grid in (1, 2, 3):
                names += [f"rearrange_unit_{unit}_block_{block}_grid_{grid}_constrain_0"]
    return names


def kernels(cuobjdump: str, library: str) -> dict[str, set[str]]:
    """The demangled names of the kernels that each architecture has code for."""
    listing = subprocess.run(
        [cuobjdump, "-symbols", library], capture_output=True, text=True, check=True
    ).stdout
    plain = re.sub(r"\b__nv_static_\w+?__(?=_Z)", "", listing)  # what nvcc puts before static names
    names = subprocess.run(
        ["c++filt"], input=plain, capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, set[str]] = {}
    architecture = ""
    for line in names.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"STT_FUNC\s+STB_\w+\s+STO_ENTRY\s+(.*)", line):
            found.setdefault(architecture, set()).add(match[1])
    return found


def main(argv: Sequence[str]) -> int:
    cuobjdump, library, *architectures = argv
    found = kernels(cuobjdump, library)
    wanted = launched()
    missing = 0
    for architecture in architectures:
        there = found.get(architecture, set())
        lacks = [
            name for name in wanted if not any(t == name or t.startswith(f"{name}(") for t in there)
        ]
        missing += len(lacks)
        launchable = f"{len(wanted) - len(lacks)} of {len(wanted)} that we launch"
        print(f"{architecture}: {len(there)} kernels, {launchable}")
        for name in lacks:
            print(f"  missing: {name}")
    others = sorted(set(found) - set(architectures))
    if others:
        print(f"also for {', '.join(others)}")
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
