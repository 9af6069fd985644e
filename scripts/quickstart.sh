#!/usr/bin/env bash
# From a fresh checkout to generated text: sets everything up, then asks the model one question.
# Usage: scripts/quickstart.sh [PROMPT]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    echo "Usage: scripts/quickstart.sh [PROMPT]"
    echo "Runs scripts/setup.sh, then scripts/qwen3.py with the prompt."
    exit 0
fi
bash scripts/setup.sh
prompt=$*
exec .venv/bin/python scripts/qwen3.py --prompt "${prompt:-What is the capital of France?}" --stats
