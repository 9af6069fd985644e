"""Fields of the documented APIs that this server does not read: which are harmless, which refused.

Those that it obeys are the fields of the bodies. OpenAI's, Anthropic's, vLLM's, llama-server's and
Ollama's are known, and some of SGLang's, TGI's and OpenRouter's. What is known nowhere is ignored,
but never silently: see unknown_fields.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
OLLAMA_CHAT, OLLAMA_GENERATE = "/api/chat", "/api/generate"
OLLAMA_EMBED, OLLAMA_EMBEDDINGS = "/api/embed", "/api/embeddings"
OLLAMA_SHOW, INPUT_TOKENS = "/api/show", "/v1/responses/input_tokens"
EMBEDDINGS, RERANK, SCORE = "/v1/embeddings", "/v1/rerank", "/v1/score"
# They answer nothing, so what only changes an answer changes nothing there.
COUNTING = (
    *("/v1/messages/count_tokens", INPUT_TOKENS, OLLAMA_SHOW),
    *("/tokenize", "/detokenize", "/apply-template"),
)

# What asks for nothing, whatever the field.
EMPTY: tuple[object, ...] = (None, "", [], {})


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that would change the answer.

    Attributes:
        neutral: Its values that ask for nothing; those of ``EMPTY`` never do.
        advice: What to do instead.
        where: The endpoints that it concerns; empty: all.
        harmless: Says of other values whether they ask for nothing.
    """

    neutral: tuple[object, ...] = ()
    advice: str = ""
    where: tuple[str, ...] = ()
    harmless: Callable[[object], bool] | None = None

    def takes(self, value: object) -> bool:
        """Return whether a value asks for nothing."""
        neutral = value in EMPTY or value in self.neutral
        return neutral or (self.harmless is not None and self.harmless(value))


_SAMPLING = "set temperature, top_p, top_k, min_p or the penalties"
_FORMS = "use response_format with type json_schema"

# By the reason why they change nothing.
HARMLESS: dict[str, tuple[str, ...]] = {
    "tells who asks, or labels the request": (
        *("user", "metadata", "safety_identifier", "session_id", "request_id", "rid"),
        *("user_profile_id", "workspace_id", "diagnostics", "trace", "agent_hint"),
        "client_metadata",
    ),
    "only responses are stored": ("store",),
    "how a provider bills, routes or moderates; there is one model on one machine": (
        *("service_tier", "inference_geo", "speed", "provider", "route", "moderation"),
        *("access_programs", "background_options", "data_parallel_rank"),
    ),
    "changes the speed only, and the prefix cache needs no hints": (
        *("prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "prediction"),
        *("cache_prompt", "cache_control", "id_slot", "slot_id", "n_cache_reuse"),
        *("keep_alive", "backend_sampling", "speculative", "speculative.n_max"),
        *("speculative.n_min", "speculative.p_min", "speculative.type", "kv_transfer_params"),
        *("ec_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room"),
    ),
    "nothing without the field that switches it on, which is refused": (
        *("dynatemp_exponent", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
        *("dry_sequence_breakers", "xtc_threshold", "mirostat_tau", "mirostat_eta"),
        *("adaptive_decay", "grammar_type", "preserved_tokens", "penalize_nl"),
        *("penalize_newline",),
    ),
    "the context is never shifted: an answer ends where it is full": (
        *("n_keep", "n_discard", "num_keep", "shift"),
    ),
    "how a model is loaded, which this one is": (
        *("low_vram", "main_gpu", "num_batch", "num_gpu", "num_thread", "numa", "use_mlock"),
        *("use_mmap", "f16_kv", "vocab_only", "logits_all", "embedding_only"),
    ),
    "Qwen3's tokenizer adds no tokens of its own, and never joins tokens with spaces": (
        *("add_special_tokens", "add_special", "spaces_between_special_tokens"),
    ),
    "thinking and calls are always split off": ("separate_reasoning", "parse_tool_calls"),
    "timings come with the last event, progress is not told": (
        *("timings_per_token", "return_progress", "verbose", "sse_ping_interval"),
    ),
    "a setting of models that were trained for it": (
        *("verbosity", "text.verbosity", "output_config.effort", "reasoning.summary"),
        *("reasoning.generate_summary", "summary", "reasoning.context", "reasoning.mode"),
    ),
    "padding against eavesdroppers on a provider's network": (
        "stream_options.include_obfuscation",
    ),
    "forms are enforced by llguidance, whatever it is called": (
        *("guided_decoding_backend", "structured_outputs.backend"),
        *("structured_outputs._backend", "structured_outputs._backend_was_auto"),
        *("structured_outputs.disable_fallback",),
    ),
    "a name, or a note to the model of OpenAI, beside the schema": (
        *("response_format.name", "response_format.strict", "response_format.description"),
    ),
}

REFUSED: dict[str, Refused] = {
    # What the answer is made of.
    "audio": Refused(),
    "image": Refused(),
    "image_data": Refused(),
    "images": Refused(),
    "multimodal_data": Refused(),
    "modalities": Refused((["text"],)),
    "media_io_kwargs": Refused(),
    "mm_processor_kwargs": Refused(),
    "prompt_embeds": Refused(),
    "cache_salt": Refused(advice="turn the prefix cache off with --prefix-cache 0"),
    # Prompts.
    "chat_template": Refused(advice="the checkpoint's is used"),
    "template": Refused(advice="the checkpoint's is used"),
    "raw": Refused((False,), "send the text to /v1/completions"),
    "context": Refused(),
    "context_management": Refused(
        advice="tool results are never cleared, and nothing is summarised",
        harmless=lambda value: (
            # Claude Code's: templates leave thinking of earlier answers out by themselves.
            isinstance(value, dict)
            and list(value) == ["edits"]
            and isinstance(value["edits"], list)
            and all(
                isinstance(edit, dict) and str(edit.get("type")).startswith("clear_thinking_")
                for edit in value["edits"]
            )
        ),
    ),
    "container": Refused(),
    "conversation": Refused(advice="send the whole conversation"),
    "previous_response_id": Refused(advice="send the whole conversation"),
    "previous_response": Refused(advice="send the whole conversation"),
    "previous_input_messages": Refused(advice="send the whole conversation"),
    "documents": Refused(advice="put them into a message"),
    "echo": Refused((False,), where=(CHAT, RESPONSES, MESSAGES)),
    "extra_body": Refused(advice="send what is in it as fields of the request"),
    "extra_headers": Refused(advice="send them as headers"),
    "extra_query": Refused(),
    "parameters": Refused(advice="send what is in it as fields of the request"),
    "options": Refused(advice="send what is in it as fields of the request"),
    "input_prefix": Refused(),
    "input_suffix": Refused(),
    "input_extra": Refused(),
    "plugins": Refused(),
    "models": Refused(),
    "transforms": Refused(),
    "prompt": Refused(where=(RESPONSES, CHAT, MESSAGES)),
    "suffix": Refused(advice="the model was not trained to insert"),
    "truncate": Refused((False,)),
    "truncation": Refused(("disabled",), "a conversation that does not fit is refused"),
    # Tools of a provider.
    "enable_search": Refused((False,)),
    "functions": Refused(advice="use tools"),
    "function_call": Refused(("none",), "use tool_choice"),
    "max_tool_calls": Refused(advice="no tools are run here"),
    "mcp_servers": Refused(),
    "web_search_options": Refused(),
    # Forms.
    "format": Refused(advice=_FORMS, where=(CHAT, COMPLETIONS, RESPONSES, MESSAGES)),
    "grammar_lazy": Refused((False,), "the grammar holds from the beginning of the answer"),
    "grammar_triggers": Refused(advice="the grammar holds from the beginning of the answer"),
    "n_indent": Refused((0,)),
    # Choosing tokens.
    "adaptive_target": Refused((-1,), _SAMPLING),
    "custom_logit_processor": Refused(),
    "custom_params": Refused(),
    "do_sample": Refused((True,), "set temperature to 0"),
    "dry_multiplier": Refused((0,), _SAMPLING),
    "dynatemp_range": Refused((0,), _SAMPLING),
    "length_penalty": Refused((1,)),
    "logits_processors": Refused(),
    "lora": Refused(),
    "lora_name": Refused(),
    "lora_path": Refused(),
    "min_keep": Refused((0,), _SAMPLING),
    "min_new_tokens": Refused((0,), "use min_tokens"),
    "mirostat": Refused((0,), _SAMPLING),
    "repeat_last_n": Refused((-1,), "penalties see the whole text"),
    "repeat_penalty": Refused((1,), "use repetition_penalty"),
    "samplers": Refused(advice=_SAMPLING),
    "tfs_z": Refused((1,), _SAMPLING),
    "top_a": Refused((0,), _SAMPLING),
    "top_n_sigma": Refused((-1, 0), _SAMPLING),
    "typical_p": Refused((1,), _SAMPLING),
    "use_beam_search": Refused((False,)),
    "vllm_xargs": Refused(),
    "watermark": Refused((False,)),
    "watermarking": Refused((False,)),
    "xtc_probability": Refused((0,), _SAMPLING),
    # How long it is, and how often there is one.
    "n": Refused((1,), where=(RESPONSES, MESSAGES)),
    "best_of": Refused((1,), where=(CHAT, RESPONSES, MESSAGES)),
    "background": Refused((False,)),
    "max_new_tokens": Refused(advice="use max_tokens"),
    "n_predict": Refused((-1,), "use max_tokens"),
    "num_predict": Refused((-1,), "use max_tokens"),
    "num_ctx": Refused(advice="the server has --max-tokens"),
    "n_cmpl": Refused((1,), "use n"),
    "t_max_predict_ms": Refused((-1, 0), "the server has --request-timeout"),
    "t_max_prompt_ms": Refused((-1, 0), "the server has --request-timeout"),
    "stop_regex": Refused(advice="use stop"),
    # What the response has.
    "details": Refused((False,), "use logprobs"),
    "decoder_input_details": Refused((False,), "use echo with logprobs"),
    "enable_response_messages": Refused((False,)),
    "include": Refused(
        advice="log-probabilities are in /v1/chat/completions",
        harmless=lambda value: (
            isinstance(value, list) and "message.output_text.logprobs" not in value
        ),
    ),
    "no_stop_trim": Refused((False,)),
    "logprob_token_ids": Refused(),
    "n_probs": Refused((0,), "use logprobs"),
    "post_sampling_probs": Refused((False,)),
    "reasoning_format": Refused(
        ("auto", "deepseek", "deepseek-legacy", "parsed"), "thinking is always split off"
    ),
    "response_fields": Refused(),
    "return_full_text": Refused((False,), "use echo in /v1/completions"),
    "return_hidden_states": Refused((False,)),
    "return_prompt_text": Refused((False,), "use /tokenize and /detokenize"),
    "return_routed_experts": Refused((False,)),
    "return_text_in_logprobs": Refused((False, True)),
    "return_tokens": Refused((False,)),
    "stream_reasoning": Refused((True,)),
    "thinking_forced_open": Refused((False,)),
    "top_logprobs": Refused((0,), "they are in /v1/chat/completions", (RESPONSES, MESSAGES)),
    "with_pieces": Refused((False,), "use return_token_strs"),
}

# Fields that some endpoints obey, and why they change nothing in others.
HARMLESS_AT: dict[str, Mapping[str, str]] = {
    RERANK: {"max_chunks_per_doc": "documents are not cut into chunks"},
    RESPONSES: {"stream_options": "the last event always has the usage"},
    MESSAGES: {
        "stream_options": "message_delta always has the usage",
        "betas": "headers name them",
        "anthropic_beta": "headers name them",
        "anthropic_version": "there is one version",
    },
}

# The parts of objects that are read; what else is in them is looked up above, by both names.
PARTS: dict[str, tuple[str, ...]] = {
    "output_config": ("format",),
    "reasoning": ("effort", "enabled", "exclude", "max_tokens"),
    "response_format": (
        *("type", "json_schema", "schema", "grammar", "pattern", "value", "structures", "triggers"),
        *("format", "at_least_one"),
    ),
    "structured_outputs": (
        *("json", "regex", "choice", "grammar", "json_object", "structural_tag"),
        *("whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"),
    ),
    "stream_options": ("include_usage", "continuous_usage_stats"),
    "repetition_detection": ("max_pattern_size", "min_pattern_size", "min_count"),
    "text": ("format",),
    "thinking": ("type", "budget_tokens", "display", "clear_thinking"),
}

# Tools that a provider or a client's own program serves; the model was trained for functions only.
# They are left out, and named as what is unknown is: a client that offers them has others besides.
UNSERVED_TOOLS = re.compile(
    r"apply_patch|code_interpreter|computer|computer_use(_preview)?|custom|file_search"
    r"|image_generation|local_shell|mcp|mcp_toolset|namespace|programmatic_tool_calling|shell"
    r"|tool_search|web_search(_preview)?(_\d{4}_\d\d_\d\d)?|url_context|x_search"
    r"|(advisor|bash|code_execution|computer|memory|text_editor|tool_search_tool_\w+|web_fetch"
    r"|web_search)_\d{8}"
)
