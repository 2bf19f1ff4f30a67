# ruff: noqa: T201 - an example prints
"""OpenAI's own client against the gateway, with this server's extra fields."""

import os

from openai import OpenAI

URL = os.environ.get("DRAFTHOUSE_GATEWAY", "http://127.0.0.1:9000")

with OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("DRAFTHOUSE_API_KEY", "none")) as client:
    stream = client.chat.completions.create(
        model="cosine",
        messages=[{"role": "user", "content": "def fib(n):"}],
        max_completion_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"num_draft_tokens": 4, "deadline_ms": 60_000},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None and chunk.usage.completion_tokens_details is not None:
            details = chunk.usage.completion_tokens_details
            print(f"\n{details.accepted_prediction_tokens} draft tokens accepted, {details.rejected_prediction_tokens} rejected")
