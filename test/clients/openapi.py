"""Prints an OpenAPI description of the server's JSON endpoints, from the fields it checks."""

from __future__ import annotations

import json
from typing import Any

from infinicore_infer.server.openai.fields import ChatBody, CompletionBody
from infinicore_infer.server.tokenize import DetokenizeBody, TokenizeBody

BODIES = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
    "/tokenize": TokenizeBody,
    "/detokenize": DetokenizeBody,
}
_TEXT = {"type": ["string", "null"]}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "param": _TEXT, "code": _TEXT},
        }
    },
}


def description() -> dict[str, Any]:
    """Returns the OpenAPI 3.1 document."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    error = {"description": "refused", "content": {"application/json": {"schema": _ERROR}}}
    good = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    for path, body in BODIES.items():
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
        reference = {"$ref": f"#/components/schemas/{body.__name__}"}
        paths[path] = {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": reference}},
                },
                "responses": {
                    "200": {"description": "the answer", "content": good},
                    "400": error,
                    "404": error,
                },
            }
        }
    for path in ("/health", "/version", "/v1/models"):
        response = {"description": "it", "content": {"application/json": {}}}
        paths[path] = {"get": {"responses": {"200": response}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "infinicore_infer", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


if __name__ == "__main__":
    print(json.dumps(description()))
