"""Errors in Anthropic's form."""

from __future__ import annotations

from infinicore_infer.server.errors import ApiError, ErrorForm
from infinicore_infer.server.http import StreamForm
from infinicore_infer.server.json_values import JsonObject

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: ApiError) -> JsonObject:
    """Return Anthropic's error object, which is also an event."""
    kind = _TYPES.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


MESSAGE_ERRORS = ErrorForm(
    error_body,
    {
        "max_steps": "max_tokens",
        "stop": "stop_sequences",
        "thinking_budget": "thinking",
        "response_format": "output_config",
        "template_variables": "chat_template_kwargs",
    },
)
MESSAGE_STREAM = StreamForm(error_body, named=True, ping='event: ping\ndata: {"type": "ping"}\n\n')
