"""Feeds the JSON Schema test suite's schemas of draft 2020-12 to the grammars. By hand:

    .venv/bin/pip download --no-deps --no-binary :all: -d /tmp jsonschema==4.26.0
    .venv/bin/python test/clients/schema_suite.py /tmp/jsonschema-4.26.0.tar.gz

The source distribution of jsonschema, which the tests need anyway, has the suite in it. What is
accepted must only give valid instances: some are drawn at random, and of the suite's own those that
are invalid must be impossible. Prints how many schemas are accepted, and why others are refused.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test" / "server")]

import jsonschema  # noqa: E402
from infinicore_infer.errors import FieldError  # noqa: E402
from infinicore_infer.generate.grammar import Grammars  # noqa: E402
from qwen3 import Qwen3ForCausalLM  # noqa: E402
from schema_walks import allows, draw  # noqa: E402


def groups(archive: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the suite's groups, each a schema with instances, and the keyword that it is about."""
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if path.parent.name != "draft2020-12" or path.parent.parent.name != "tests":
                continue
            data = tar.extractfile(member)
            if data is not None and path.suffix == ".json":
                for group in json.load(data):
                    yield path.stem, group


def without_unique(value: Any) -> Any:
    """Return a schema without uniqueItems, which is dropped by a documented rule."""
    if isinstance(value, dict):
        return {k: without_unique(item) for k, item in value.items() if k != "uniqueItems"}
    return [without_unique(item) for item in value] if isinstance(value, list) else value


def _kind(valid: bool, possible: bool) -> str:
    return f"{'valid' if valid else 'invalid'} instances, {'' if possible else 'not '}possible"


def main() -> int:
    """Return the exit status: 1 if an accepted schema gave an invalid instance."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", help="jsonschema-*.tar.gz")
    parser.add_argument("--draws", type=int, default=10, help="instances drawn of each schema")
    args = parser.parse_args()
    rng, wrong, narrow = random.Random(1), [], []
    counts: collections.Counter[str] = collections.Counter()
    reasons: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with Qwen3ForCausalLM(ROOT / "test" / "data" / "qwen3-tiny", threads=1) as model:
        grammars = Grammars()
        grammars.attach(model)
        for keyword, group in groups(args.archive):
            schema = group["schema"]
            if not isinstance(schema, dict):
                counts["true and false, which are no objects"] += 1
                continue
            name = f"{keyword}: {group['description']}"
            try:
                texts = [draw(model, grammars, schema, rng) for _ in range(args.draws)]
            except FieldError as error:
                counts["refused"] += 1
                reasons[str(error)][keyword] += 1
                continue
            counts["accepted"] += 1
            validator = jsonschema.Draft202012Validator(without_unique(schema))
            for text in texts:
                counts["instances drawn"] += text is not None
                if text is not None and not validator.is_valid(json.loads(text)):
                    wrong.append(f"{name}: drawn {text} of {schema}")
            for test in group["tests"]:
                possible = allows(model, grammars, schema, test["data"])
                valid = validator.is_valid(test["data"])
                counts[_kind(valid, possible)] += 1
                if valid and not possible:
                    narrow.append(f"{name}: not {test['data']} of {schema}")
                if possible and not valid:
                    wrong.append(f"{name}: allows {test['data']} of {schema}")
    for what, count in counts.items():
        print(f"{count:5} {what}")
    for reason, keywords in sorted(reasons.items()):
        print(f"{keywords.total():5} {reason}: {', '.join(keywords)}")
    print("Valid, but not possible:", *narrow, sep="\n")
    print("Wrong:", *wrong, sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
