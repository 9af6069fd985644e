"""What a config.json says about the experts of a mixture-of-experts model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from libinfinicore_infer import Qwen3ModelOptions

from infinicore_infer.checkpoint.config_reader import Reader, short

# transformers' Qwen3MoeConfig's, for keys that a config.json lacks.
EXPERT_DEFAULTS: Mapping[str, Any] = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
    "decoder_sparse_step": 1,
}
_MOST_EXPERTS = 65536  # the library's limit


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of a model; every layer that has some has as many.

    Attributes:
        count: Experts of a layer.
        used: How many of them each token goes through.
        dm: Inner rows of each one's MLP.
        norm_topk_prob: Whether the weights of a token's experts are divided by their sum.
        layers: The layers that have experts; the others have one MLP.
    """

    count: int
    used: int
    dm: int
    norm_topk_prob: bool
    layers: frozenset[int]

    def apply(self, options: Qwen3ModelOptions) -> None:
        """Set the fields of the options that say this to the library."""
        options.nexperts = self.count
        options.nexperts_used = self.used
        options.dm = self.dm
        options.norm_topk_prob = int(self.norm_topk_prob)


def moe_config(values: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a config of model_type "qwen3_moe" in published names, and transformers' defaults.

    transformers 5 writes ``num_local_experts`` where published checkpoints have ``num_experts``.

    Args:
        values: The config.
        source: Where it is from, for messages.

    Raises:
        ConfigError: Both names are there, and differ.
    """
    config = dict(values)
    count = config.pop("num_local_experts", None)
    if count is not None and config.setdefault("num_experts", count) != count:
        raise Reader(values, source).fail(
            "num_local_experts", f"is {short(count)}, 'num_experts' {short(config['num_experts'])}"
        )
    defaults = {**EXPERT_DEFAULTS, "num_key_value_heads": 4}
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        defaults["head_dim"] = width // heads
    return config, defaults


def read_experts(config: Reader) -> Experts | None:
    """Return what a config of model_type "qwen3_moe" says; ``None``: no layer has experts.

    Raises:
        ConfigError: A value is wrong.
    """
    if config.values["num_experts"] == 0:
        return None
    count = config.size("num_experts", _MOST_EXPERTS)
    used = config.size("num_experts_per_tok")
    if used > count:
        raise config.fail("num_experts_per_tok", f"is {used}, more than 'num_experts', {count}")
    nlayer = config.size("num_hidden_layers")
    step = config.size("decoder_sparse_step")
    plain = config.values.get("mlp_only_layers") or []
    if not isinstance(plain, list) or any(type(i) is not int for i in plain):
        raise config.fail("mlp_only_layers", f"must be a list of layers, got {short(plain)}")
    layers = frozenset(i for i in range(nlayer) if i not in plain and (i + 1) % step == 0)
    norm = config.flag("norm_topk_prob")
    dm = config.size("moe_intermediate_size", 2**24)
    return Experts(count, used, dm, norm, layers) if layers else None
