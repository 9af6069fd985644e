"""What this machine can do, for benchmarks to compare with: read bandwidth and multiply-add peak.

Measured by the native program `bench_machine`, which an installed package has beside its library
and a checkout in its build folder (`.venv/bin/xmake build bench_machine`).
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from infinicore_infer.paths import CHECKOUT, PACKAGES

PROGRAM = "bench_machine"


# Peaks that bench_machine measures: of float32 multiply-adds, and of the instructions that multiply
# bf16 and bytes, the fastest last. A CPU has the first and some of the others.
FLOAT_PEAKS = ("fma_gflops", "bf16_gflops", "amx_bf16_gflops")
CODE_PEAKS = ("fma_gflops", "int8_gops", "amx_int8_gops")


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The machine's limits at one moment, of all threads together.

    Attributes:
        bandwidth: B, GB/s read from memory.
        peak: P, GFLOP/s of float32 multiply-adds.
        float_peak: GFLOP/s of the fastest instruction that multiplies floats or bf16.
        code_peak: GOP/s of the fastest instruction that multiplies bytes, P where there is none.
    """

    bandwidth: float
    peak: float
    float_peak: float
    code_peak: float

    @classmethod
    def of(cls, figures: dict[str, Any]) -> Limits:
        """Take them from a line of the native program."""
        peaks = [[figures.get(name, 0.0) for name in names] for names in (FLOAT_PEAKS, CODE_PEAKS)]
        return cls(figures["bandwidth_gbps"], figures["fma_gflops"], *map(max, peaks))

    def mean(self, other: Limits) -> Limits:
        """Return what lies between two moments."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Limits(*(sum(pair) / 2 for pair in pairs))


def _program() -> Path:
    """Return the native program: a checkout's own build, else the package's copy.

    Raises:
        FileNotFoundError: Neither is there.
    """
    found = [PACKAGES / "infinicore_infer" / "lib" / PROGRAM]
    if CHECKOUT:
        found = sorted((CHECKOUT / "build" / "linux").glob(f"*/release/{PROGRAM}"))
    for path in found:
        if path.is_file():
            return path
    advice = (
        "run `.venv/bin/xmake build bench_machine`" if CHECKOUT else "it exists for x86-64 only"
    )
    raise FileNotFoundError(f"{PROGRAM}, which measures the machine, is not built: {advice}")


class Machine:
    """The native program, kept running: a shared machine's limits change within seconds.

    Attributes:
        facts: bandwidth_gbps (B, the best of all), fma_gflops (P), the peaks of the other
            instructions that this CPU has, and every pattern's reads.
    """

    def __init__(self, threads: int) -> None:
        """Start the program and measure all access patterns, which takes some seconds.

        Raises:
            FileNotFoundError: The program has not been built.
            RuntimeError: It cannot run here, for example for want of AVX2.
        """
        self._process = subprocess.Popen(
            [_program(), "--repeat", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"bench_machine failed, exit status {self._process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def now(self) -> Limits:
        """Measure the limits of this moment, in about 0.2 s, with the patterns that were best."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Limits.of(self._line())

    def close(self) -> None:
        """Stop the program; it uses no CPU time between measurements, but memory."""
        self._process.communicate()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def measure_machine(threads: int) -> dict[str, Any]:
    """Measure once and return the facts of :class:`Machine`."""
    with Machine(threads) as machine:
        return machine.facts


def cpu_name() -> str:
    """Return the CPU's model name and family, as far as the system says."""
    try:
        fields = dict(
            line.split(":", 1)
            for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
            if ":" in line
        )
    except OSError:
        return platform.processor() or "unknown CPU"
    clean = {key.strip(): value.strip() for key, value in fields.items()}
    family = f"family {clean.get('cpu family', '?')} model {clean.get('model', '?')}"
    return f"{clean.get('model name', '?')} {family}"
