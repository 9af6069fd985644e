"""The texts that Qwen3-Embedding and Qwen3-Reranker were trained on, around those of a caller."""

from __future__ import annotations

# Of the models' cards; what to say where a caller names no task of his own.
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"

_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
# What stands before and after a query and a document that are to be judged.
JUDGE_PREFIX = f"<|im_start|>system\n{_JUDGE}<|im_end|>\n<|im_start|>user\n"
JUDGE_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
YES, NO = "yes", "no"


def instructed(query: str, instruction: str) -> str:
    """Return the text that is embedded for a query; documents are embedded as they are."""
    return f"Instruct: {instruction}\nQuery:{query}"


def judged(query: str, document: str, instruction: str = WEB_SEARCH) -> str:
    """Return the text of a query and a document, without what stands before and after it."""
    return f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
