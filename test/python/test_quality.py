"""The quality tool: its figures against the definitions, and the gates of the weight formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from infinicore_infer.arguments import Precision
from infinicore_infer.tools import quality
from qwen3 import Qwen3ForCausalLM

DATA = Path(__file__).resolve().parents[1] / "data"
MODEL = DATA / "qwen3-tiny"
TEXT = DATA / "quality.txt"


def test_definitions() -> None:
    """Figures of two small distributions, computed by hand."""
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    total = quality.Accumulator()
    logits = [np.log(x)[None].astype(np.float32) + 3 for x in (p, q)]
    total.add(logits[0], logits[1], np.array([1]))
    result = total.result("x", 5_000_000)
    assert result.perplexity == pytest.approx(2.0)
    assert result.mean_kld == pytest.approx(0.25 * np.log(2), rel=1e-6)
    assert (result.same_top, result.weight_mb, result.tokens) == (0.0, 5.0, 1)


def test_gates() -> None:
    """Quantised formats stay within the divergence that docs/quantisation.md promises."""
    with Qwen3ForCausalLM(MODEL) as model:
        tokens = model.encode(TEXT.read_text(encoding="utf-8"))
    names = ["int8", "int4-mixed", "int4"]
    rows = {
        row.dtype: row
        for row in quality.compare(MODEL, tokens, [Precision(name) for name in names], 256, 0)
    }
    assert rows["checkpoint"].mean_kld == 0.0 and rows["checkpoint"].same_top == 1.0
    assert 0.0 < rows["int8"].mean_kld <= 0.0015
    assert 0.0 < rows["int4"].mean_kld <= 0.006
    assert 0.0 < rows["int4-mixed"].mean_kld <= 0.0035
    assert rows["int4-mixed"].mean_kld < rows["int4"].mean_kld
    assert rows["int8"].same_top >= 0.98 and rows["int4"].same_top >= 0.93
    sizes = [rows[name].weight_mb for name in (*names[::-1], "checkpoint")]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


def test_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """JSON out, and a clear error for a text that is too short or missing."""
    assert quality.main(["--text", str(TEXT), "--limit", "64", "--dtype", "int8", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["dtype"] for row in rows] == ["checkpoint", "int8"]
    (tmp_path / "short.txt").write_text("Hi")
    assert quality.main(["--text", str(tmp_path / "short.txt")]) == 1
    assert "at least 4 are needed" in capsys.readouterr().err
    assert quality.main(["--text", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err
