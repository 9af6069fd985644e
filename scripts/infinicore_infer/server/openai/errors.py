"""Errors in OpenAI's form."""

from __future__ import annotations

from infinicore_infer.server.errors import ApiError, ErrorForm
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


def error_body(error: ApiError) -> JsonObject:
    """Return OpenAI's error object, which is also an event of chat and text completions."""
    parts = {
        "message": error.message,
        "type": _TYPES.get(error.status, "invalid_request_error"),
        "param": error.param,
        "code": error.code,
    }
    return {"error": parts}


CHAT_ERRORS = ErrorForm(error_body, {"template_variables": "chat_template_kwargs"})
RESPONSE_ERRORS = ErrorForm(
    error_body,
    {
        "messages": "input",
        "response_format": "text",
        "thinking_budget": "reasoning",
        "max_steps": "max_output_tokens",
        "template_variables": "chat_template_kwargs",
    },
)
# Streams of chat and text completions.
COMPLETION_STREAM = StreamForm(error_body, end="data: [DONE]\n\n")
