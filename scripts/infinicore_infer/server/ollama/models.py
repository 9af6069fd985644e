"""The model as Ollama's clients ask for it: lists, its card, and what would change it, refused."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone

from starlette.requests import Request
from starlette.responses import Response

from infinicore_infer.server.errors import ApiError, unavailable
from infinicore_infer.server.fields import Body
from infinicore_infer.server.http import json_response
from infinicore_infer.server.json_values import JsonObject
from infinicore_infer.server.known_fields import OLLAMA_SHOW
from infinicore_infer.server.ollama.writer import rfc3339
from infinicore_infer.server.service import Service, service_of

# The version of Ollama's API that is followed here: some clients refuse to work with older ones.
API_VERSION = "0.13.0"
_LATEST = ":latest"
# Of a model that is never unloaded.
_NEVER = "2318-04-11T00:00:00Z"


class ModelBody(Body):
    """A request about a model."""

    endpoint = OLLAMA_SHOW

    # Its older name.
    name: str | None = None
    verbose: bool | None = None
    stream: bool | None = None
    insecure: bool | None = None

    @property
    def wanted(self) -> str | None:
        """The model that is asked for."""
        return self.model if self.model is not None else self.name


def served_name(service: Service, name: str | None) -> str:
    """Return the name that an answer gives the model, and see that it is ready.

    Raises:
        ApiError: It is not ready, or the name is another model's.
    """
    service.ready(name)
    return listed(service.config.model_name) if name is None else name


def listed(name: str) -> str:
    """Return a name as Ollama lists it: with a tag."""
    return name if ":" in name else name + _LATEST


def _loaded(service: Service) -> Service:
    """Return the state behind the endpoints, if the model is there; also while draining."""
    if service.async_engine is None:
        raise unavailable("the model is being loaded", "loading")
    return service


def _size(parameters: int) -> str:
    """Return a number of parameters as Ollama writes it."""
    if parameters >= 10**9:
        return f"{parameters / 1e9:.1f}B"
    return f"{parameters / 1e6:.2f}M"


def _family(service: Service) -> str:
    """Return the name of the architecture, as GGUF files have it."""
    return "qwen3" if service.model.meta.experts is None else "qwen3moe"


def _details(service: Service) -> JsonObject:
    model = service.model
    return {
        "parent_model": "",
        "format": "gguf" if model.path.is_file() else "safetensors",
        "family": _family(service),
        "families": [_family(service)],
        "parameter_size": _size(model.meta.parameter_count),
        "quantization_level": model.build_info()["weights"].upper(),
    }


def _entry(service: Service, name: str) -> JsonObject:
    shown = listed(name)
    started = datetime.fromtimestamp(service.created, timezone.utc)
    return {
        "name": shown,
        "model": shown,
        "modified_at": rfc3339(started),
        "size": service.model.stats()["weight_bytes"],
        # Ollama's are of files; this one is of what may change an answer.
        "digest": hashlib.sha256(service.fingerprint.encode()).hexdigest(),
        "details": _details(service),
    }


def capabilities(service: Service) -> list[str]:
    """Return what the model can do, in Ollama's words."""
    if service.model.task != "chat":
        return ["embedding" if service.model.task == "embed" else "rerank"]
    if not service.model.has_tokenizer:
        return ["completion"]
    templates = service.model.tokenizer.templates.literals()
    found = ["completion"]
    if "tools" in templates:
        found.append("tools")
    if "think" in templates:
        found.append("thinking")
    return found


async def tags(request: Request) -> Response:
    """List the names of the model."""
    service = _loaded(service_of(request))
    return json_response({"models": [_entry(service, name) for name in service.config.names]})


async def running(request: Request) -> Response:
    """List what is in memory: the model."""
    service = _loaded(service_of(request))
    on_cpu = service.model.backend == "cpu"
    entry = _entry(service, service.config.model_name)
    size = entry["size"]
    entry |= {
        "expires_at": _NEVER,
        "size_vram": 0 if on_cpu else size,
        "context_length": service.engine.engine.context_length,
    }
    return json_response({"models": [entry]})


def _model_info(service: Service) -> JsonObject:
    """Return sizes of the model under the names that GGUF files have for them."""
    meta, family = service.model.meta, _family(service)
    sizes: JsonObject = {
        "attention.head_count": meta.nh,
        "attention.head_count_kv": meta.nkvh,
        "attention.key_length": meta.dh,
        "attention.value_length": meta.dh,
        "attention.layer_norm_rms_epsilon": meta.epsilon,
        "block_count": meta.nlayer,
        # What this server takes, which may be less than what the model was trained for.
        "context_length": service.engine.engine.context_length,
        "embedding_length": meta.d,
        "feed_forward_length": meta.di,
        "rope.freq_base": meta.theta,
        "vocab_size": meta.dvoc,
    }
    if meta.experts is not None:
        sizes |= {"expert_count": meta.experts.count, "expert_used_count": meta.experts.used}
    return {
        "general.architecture": family,
        "general.basename": service.config.model_name,
        "general.parameter_count": meta.parameter_count,
        **{f"{family}.{name}": value for name, value in sizes.items()},
    }


async def show(request: Request) -> Response:
    """Return the model's card."""
    service = service_of(request)
    body = await service.read(request, ModelBody)
    served_name(service, body.wanted)
    model = service.model
    meta = model.meta
    template = ""
    if model.has_tokenizer:
        template = model.tokenizer.templates.sources.get("default", "")
    settings = meta.generation_config
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = [(name, settings[name]) for name in names if settings.get(name) is not None]
    # Some clients look for the context here.
    given.append(("num_ctx", service.engine.engine.context_length))
    card: JsonObject = {
        "modelfile": "",
        "license": "",
        "parameters": "\n".join(f"{_OPTIONS.get(name, name)} {value}" for name, value in given),
        "template": template,
        "details": _details(service),
        "capabilities": capabilities(service),
        "modified_at": _entry(service, service.config.model_name)["modified_at"],
        "model_info": _model_info(service),
    }
    return json_response(card)


_OPTIONS = {"repetition_penalty": "repeat_penalty"}


async def version(request: Request) -> Response:
    """Return the version of the API, and whose server it is."""
    return json_response({"version": API_VERSION, "infinicore_infer": request.app.state.version})


async def pull(request: Request) -> Response:
    """Say that the model is there; others cannot be had."""
    service = service_of(request)
    body = await service.read(request, ModelBody)
    try:
        served_name(service, body.wanted)
    except ApiError as error:
        if error.status != 404:
            raise
        raise _fixed(f"{error.message}, and downloads none") from None
    # Streams of one line and answers sent whole look the same.
    return json_response({"status": "success"})


async def fixed(request: Request) -> Response:
    """Refuse what would change the models of this server.

    Raises:
        ApiError: Always.
    """
    raise _fixed(f"{request.url.path} is not supported: this server has the model it began with")


def _fixed(message: str) -> ApiError:
    return ApiError(400, message, code="unsupported")
