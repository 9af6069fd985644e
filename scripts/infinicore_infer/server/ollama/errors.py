"""Errors in Ollama's form, and the form of its streams."""

from __future__ import annotations

from infinicore_infer.server.errors import ApiError, ErrorForm
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject


def error_body(error: ApiError) -> JsonObject:
    """Return Ollama's error object, which is also a line of a stream."""
    return {"error": error.message}


OLLAMA_ERRORS = ErrorForm(
    error_body,
    {
        "max_steps": "options.num_predict",
        "repetition_penalty": "options.repeat_penalty",
        "thinking_budget": "think",
        "template_variables": "chat_template_kwargs",
    },
)
# Its clients read every line as JSON, so nothing is sent while nothing is to be said.
OLLAMA_STREAM = StreamForm(error_body, ping="", lines=True)
