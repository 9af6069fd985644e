"""Lets clients that are too heavy for the automatic tests use a running server. By hand:

    pip install -r test/clients/requirements.txt        # in an environment of its own
    npm install --prefix test/clients                   # for the AI SDK and Ollama's client
    python scripts/launch_server.py --max-tokens 512 &  # the demo model
    python test/clients/run.py --url http://127.0.0.1:8000 [litellm instructor ai_sdk ...]

Prints a line per client with its version; the exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import math
import operator
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from form_clients import check_guidance, check_outlines
from frameworks import (
    check_agents,
    check_ai_sdk,
    check_anthropic,
    check_instructor,
    check_pydantic_ai,
)
from ollama_clients import (
    check_langchain_ollama,
    check_ollama,
    check_ollama_ai_sdk,
    check_ollama_js,
    check_responses,
)
from running import run_clients

ROOT = Path(__file__).resolve().parents[2]
MODEL = "qwen3-tiny"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
# As in the demo model's training.
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
TOWN_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        **TOOL["function"],
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"town": {"enum": ["Oslo", "Rome"]}, "days": {"enum": [1, 2]}},
            "required": ["town", "days"],
            "additionalProperties": False,
        },
    },
}
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


def check_litellm(url: str) -> None:
    """Whole, streamed, asynchronous, tools, errors."""
    # Else it looks for prices on the internet.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    where = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    answer = litellm.completion(**where, messages=CAPITAL, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert "Paris" in answer.choices[0].message.reasoning_content
    chunks = litellm.completion(**where, messages=CAPITAL, temperature=0, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    answer = asyncio.run(litellm.acompletion(**where, messages=CAPITAL, temperature=0))
    assert answer.choices[0].message.content == ANSWER
    answer = litellm.completion(**where, messages=WEATHER, tools=[TOOL], temperature=0)
    call = answer.choices[0].message.tool_calls[0].function
    assert call.name == "get_weather" and "city" in json.loads(call.arguments)
    chunks = list(
        litellm.completion(**where, messages=WEATHER, tools=[TOOL], temperature=0, stream=True)
    )
    built = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls[0].function
    assert (built.name, built.arguments) == (call.name, call.arguments)
    text = litellm.text_completion(
        **{**where, "model": f"text-completion-openai/{MODEL}"}, prompt="One", max_tokens=4
    )
    assert text.choices[0].text
    try:
        litellm.completion(**where, messages=CAPITAL, temperature=-1)
    except litellm.BadRequestError as error:
        assert "temperature" in str(error)
    else:
        raise AssertionError("a wrong temperature was accepted")


def check_langchain(url: str) -> None:
    """Whole, streamed, asynchronous, batches, tools, structured output."""
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    chat = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0)
    question = CAPITAL[0]["content"]
    assert chat.invoke(question).content == ANSWER
    assert "".join(str(chunk.content) for chunk in chat.stream(question)) == ANSWER
    assert asyncio.run(chat.ainvoke(question)).content == ANSWER
    assert [answer.content for answer in chat.batch([question] * 8)] == [ANSWER] * 8
    usage = chat.invoke(question).usage_metadata
    assert usage is not None and usage["input_tokens"] == 15
    tools = chat.bind_tools([TOOL])
    call = tools.invoke(WEATHER[0]["content"]).tool_calls[0]
    assert call["name"] == "get_weather" and "city" in call["args"]
    pieces = list(tools.stream(WEATHER[0]["content"]))
    assert sum(bool(piece.tool_call_chunks) for piece in pieces) > 3
    whole = functools.reduce(operator.add, pieces).tool_calls[0]
    assert (whole["name"], whole["args"]) == (call["name"], call["args"])
    strict = chat.bind_tools([TOWN_TOOL])
    call = strict.invoke(WEATHER[0]["content"]).tool_calls[0]
    assert set(call["args"]) == {"town", "days"} and call["args"]["town"] in ("Oslo", "Rome")

    class Place(BaseModel):
        """A place."""

        inhabitants: int
        capital: bool

    structured = chat.with_structured_output(Place, method="json_schema")
    assert isinstance(structured.invoke(question), Place)


_TASK = """\
task: own_text
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""


def check_lm_eval(url: str) -> None:
    """The perplexity of texts of our own equals that of Qwen3ForCausalLM.perplexity."""
    texts = [
        "The capital of France is Paris. The capital of Italy is Rome.",
        "Once upon a time there was a small model that answered every question it was asked.",
        "One, two, three, four, five. Tell me more about the weather in Paris, please.",
    ]
    begin = "<|im_end|>"
    model_path = ROOT / "test" / "data" / MODEL
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "texts.jsonl"
        data.write_text("\n".join(json.dumps({"text": text}) for text in texts))
        (Path(folder) / "own_text.yaml").write_text(_TASK.format(data=data))
        arguments = f"model={MODEL},base_url={url}/v1/completions,tokenizer={model_path}"
        arguments += ",tokenizer_backend=huggingface,num_concurrent=2,max_length=512"
        command = [sys.executable, "-m", "lm_eval", "--model", "local-completions"]
        command += ["--model_args", arguments, "--tasks", "own_text", "--include_path", folder]
        command += ["--output_path", f"{folder}/out"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
        result = json.loads(next(Path(folder).rglob("results*.json")).read_text())
    bits = result["results"]["own_text"]["bits_per_byte,none"]
    # lm-eval puts the tokenizer's eos token before a text, so that its first token is scored too.
    script = (
        "import json, sys\n"
        "from qwen3 import Qwen3ForCausalLM\n"
        "with Qwen3ForCausalLM(sys.argv[1], threads=1) as model:\n"
        "    print(model.perplexity(json.loads(sys.argv[2])).nll)\n"
    )
    python = os.environ.get("ENGINE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    items = json.dumps([begin + text for text in texts])
    output = subprocess.run(
        [python, "-c", script, str(model_path), items],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = float(output) / math.log(2) / sum(len(text.encode()) for text in texts)
    assert abs(bits - expected) < 1e-5 * expected, (bits, expected)
    print(f"  lm_eval: {bits:.6f} bits per byte, Qwen3ForCausalLM.perplexity: {expected:.6f}")


def check_schemathesis(url: str) -> None:
    """Requests generated from our own fields: no crash, valid and invalid ones alike."""
    python = os.environ.get("ENGINE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
    spec = subprocess.run(
        [python, str(Path(__file__).parent / "openapi.py")], capture_output=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "openapi.json").write_bytes(spec)
        program = Path(sys.executable).parent / "schemathesis"
        command = [str(program), "run", f"{folder}/openapi.json", "--url", url, "--seed", "1"]
        command += ["--checks", "not_a_server_error,content_type_conformance,"]
        command[-1] += "status_code_conformance,response_schema_conformance"
        command += ["--max-examples", "100", "--phases", "examples,fuzzing", "--request-timeout"]
        command += ["60"]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    print("  " + "\n  ".join(run.stdout.splitlines()[-8:]))
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


CLIENTS: dict[str, tuple[str, Callable[[str], None]]] = {
    "litellm": ("litellm", check_litellm),
    "langchain": ("langchain-openai", check_langchain),
    "lm_eval": ("lm_eval", check_lm_eval),
    "schemathesis": ("schemathesis", check_schemathesis),
    "anthropic": ("anthropic", check_anthropic),
    "instructor": ("instructor", check_instructor),
    "pydantic_ai": ("pydantic-ai-slim", check_pydantic_ai),
    "agents": ("openai-agents", check_agents),
    "ai_sdk": ("npm:ai", check_ai_sdk),
    "ollama": ("ollama", check_ollama),
    "ollama_js": ("npm:ollama", check_ollama_js),
    "ollama_ai_sdk": ("npm:ollama-ai-provider-v2", check_ollama_ai_sdk),
    "langchain_ollama": ("langchain-ollama", check_langchain_ollama),
    "responses": ("openai", check_responses),
    "outlines": ("outlines", check_outlines),
    "guidance": ("guidance", check_guidance),
}


def main() -> int:
    """Runs the clients named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("clients", nargs="*", help=", ".join(CLIENTS))
    args = parser.parse_args()
    return run_clients(CLIENTS, args.clients, args.url)


if __name__ == "__main__":
    raise SystemExit(main())
