"""Names of a model's weights in the kinds of checkpoints that there are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class ExpertName:
    """Name of a weight of one expert of a layer, or of all of them together.

    Attributes:
        field: What it is, such as ``"expert_gate"``.
        name: Its name.
        expert: Which expert's.
        stacked: Whether it is of all experts, [e, rows, columns].
    """

    field: str
    name: str
    expert: int = 0
    stacked: bool = False


class Qwen3WeightsNaming:
    """Names of a Qwen3 model's weights in Hugging Face checkpoints.

    Attributes:
        prefix: ``"model."``; empty for checkpoints saved without the language-model head class;
            others for models that were saved inside another or compiled
            (``"model.language_model."``, ``"_orig_mod.model."``).
        head: The name of the output embeddings.
    """

    def __init__(self, prefix: str = "model.", head: str = "lm_head.weight") -> None:
        """Store prefix and name."""
        self.prefix = prefix
        self.head = head

    @classmethod
    def match(cls, names: Iterable[str]) -> Qwen3WeightsNaming:
        """Return the naming that a checkpoint uses, judged by its embedding and head.

        Where several tensors could be one of them, the ordinary names are expected.
        """
        listed = list(names)
        if "token_embd.weight" in listed:
            return GgufNaming()
        embeddings = [n for n in listed if n == _EMBEDDING or n.endswith(f".{_EMBEDDING}")]
        heads = [n for n in listed if n == _HEAD or n.endswith(f".{_HEAD}")]
        ordinary = f"model.{_EMBEDDING}" in embeddings or len(embeddings) != 1
        prefix = "model." if ordinary else embeddings[0].removesuffix(_EMBEDDING)
        return cls(prefix, heads[0] if len(heads) == 1 else _HEAD)

    def input_embd(self) -> str:
        """Token embeddings, [dvoc, d]."""
        return f"{self.prefix}embed_tokens.weight"

    def output_norm(self) -> str:
        """Last norm, [d]."""
        return f"{self.prefix}norm.weight"

    def output_embd(self) -> str:
        """Output embeddings, [dvoc, d]."""
        return self.head

    def _layer(self, i: int, name: str) -> str:
        return f"{self.prefix}layers.{i}.{name}"

    def attn_norm(self, i: int) -> str:
        """Norm before attention, [d]."""
        return self._layer(i, "input_layernorm.weight")

    def attn_q_norm(self, i: int) -> str:
        """Norm of each query head, [dh]."""
        return self._layer(i, "self_attn.q_norm.weight")

    def attn_k_norm(self, i: int) -> str:
        """Norm of each key head, [dh]."""
        return self._layer(i, "self_attn.k_norm.weight")

    def attn_q(self, i: int) -> str:
        """Query projection, [nh * dh, d]."""
        return self._layer(i, "self_attn.q_proj.weight")

    def attn_k(self, i: int) -> str:
        """Key projection, [nkvh * dh, d]."""
        return self._layer(i, "self_attn.k_proj.weight")

    def attn_v(self, i: int) -> str:
        """Value projection, [nkvh * dh, d]."""
        return self._layer(i, "self_attn.v_proj.weight")

    def attn_o(self, i: int) -> str:
        """Output projection, [d, nh * dh]."""
        return self._layer(i, "self_attn.o_proj.weight")

    def attn_q_b(self, i: int) -> str:
        """Query bias, [nh * dh]."""
        return self._layer(i, "self_attn.q_proj.bias")

    def attn_k_b(self, i: int) -> str:
        """Key bias, [nkvh * dh]."""
        return self._layer(i, "self_attn.k_proj.bias")

    def attn_v_b(self, i: int) -> str:
        """Value bias, [nkvh * dh]."""
        return self._layer(i, "self_attn.v_proj.bias")

    def attn_o_b(self, i: int) -> str:
        """Output bias, [d]."""
        return self._layer(i, "self_attn.o_proj.bias")

    def ffn_norm(self, i: int) -> str:
        """Norm before the MLP, [d]."""
        return self._layer(i, "post_attention_layernorm.weight")

    def ffn_gate(self, i: int) -> str:
        """Gate projection, [di, d]."""
        return self._layer(i, "mlp.gate_proj.weight")

    def ffn_up(self, i: int) -> str:
        """Up projection, [di, d]."""
        return self._layer(i, "mlp.up_proj.weight")

    def ffn_down(self, i: int) -> str:
        """Down projection, [d, di]."""
        return self._layer(i, "mlp.down_proj.weight")

    def ffn_router(self, i: int) -> str:
        """Router over the layer's experts, [e, d]."""
        return self._layer(i, "mlp.gate.weight")

    def expert_forms(self, i: int, count: int) -> list[list[ExpertName]]:
        """Return the ways in which a layer's experts may be stored, the most usual one last.

        Args:
            i: The layer.
            count: How many experts it has.
        """
        stacked = [
            ExpertName("expert_gate_up", self._layer(i, "mlp.experts.gate_up_proj"), stacked=True),
            ExpertName("expert_down", self._layer(i, "mlp.experts.down_proj"), stacked=True),
        ]
        single = [
            ExpertName(f"expert_{part}", self._layer(i, f"mlp.experts.{e}.{part}_proj.weight"), e)
            for e in range(count)
            for part in ("gate", "up", "down")
        ]
        return [stacked, single]

    def is_ignored(self, name: str) -> bool:
        """Return whether a tensor is a computed buffer that old checkpoints carried along."""
        return name.endswith("rotary_emb.inv_freq")


# Weights of a layer: Hugging Face's names, and those of GGUF files.
_GGUF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.bias": "attn_output.bias",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
}


class GgufNaming(Qwen3WeightsNaming):
    """Names of a Qwen3 model's weights in GGUF files."""

    def __init__(self) -> None:
        """Store the names."""
        super().__init__("", "output.weight")

    def input_embd(self) -> str:
        """Token embeddings, [dvoc, d]."""
        return "token_embd.weight"

    def output_norm(self) -> str:
        """Last norm, [d]."""
        return "output_norm.weight"

    def _layer(self, i: int, name: str) -> str:
        return f"blk.{i}.{_GGUF_LAYER[name]}"

    def expert_forms(self, i: int, count: int) -> list[list[ExpertName]]:
        """Return the one way in which a layer's experts are stored."""
        return [
            [
                ExpertName(f"expert_{part}", f"blk.{i}.ffn_{part}_exps.weight", stacked=True)
                for part in ("gate", "up", "down")
            ]
        ]
