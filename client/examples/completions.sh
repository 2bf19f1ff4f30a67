#!/usr/bin/env bash
# The gateway by curl: a whole completion, then a stream.
set -euo pipefail
url=${DRAFTHOUSE_GATEWAY:-http://127.0.0.1:9000}
key=${DRAFTHOUSE_API_KEY:-none}

curl --silent --fail "$url/v1/completions" --header "Authorization: Bearer $key" \
  --json '{"model": "cosine", "prompt": "def fib(n):", "max_tokens": 24, "temperature": 0}'
echo
curl --silent --fail --no-buffer "$url/v1/completions" --header "Authorization: Bearer $key" \
  --json '{"model": "cosine", "prompt": "def fib(n):", "max_tokens": 24, "temperature": 0, "stream": true}'
