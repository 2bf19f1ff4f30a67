# ruff: noqa: T201 - an example prints
"""Which drafter is behind each token: the synchronous client's events."""

import os

from drafthouse_client import Client, Finished, GenerateOptions, Retry, Tokens

URL = os.environ.get("DRAFTHOUSE_GRPC", "127.0.0.1:8001")

with Client(URL, timeout_s=60, retry=Retry(attempts=5)) as client:
    for event in client.events("def fib(n):", GenerateOptions(max_tokens=32, temperature=0.8, seed=1)):
        match event:
            case Tokens(text, tokens):
                print(repr(text), "by", ", ".join(token.drafter or "the target" for token in tokens))
            case Finished(completion):
                print(f"{completion.num_output_tokens} tokens, {completion.tokens_per_verification:.1f} per verification")
