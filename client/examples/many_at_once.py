# ruff: noqa: T201 - an example prints
"""Several completions at the same time: the asyncio client."""

import asyncio
import os

from drafthouse_client import AsyncClient, GenerateOptions, ServerSideError

URL = os.environ.get("DRAFTHOUSE_GRPC", "127.0.0.1:8001")
PROMPTS = ("def fib(n):", "ROMEO:\n", "Natalia has 12 apples and buys 7 more.")


async def main() -> None:
    """One line per prompt, or what the server refused."""
    async with AsyncClient(URL) as client:
        options = GenerateOptions(max_tokens=24, temperature=0.0)
        answers = await asyncio.gather(*(client.generate(prompt, options) for prompt in PROMPTS), return_exceptions=True)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        if isinstance(answer, ServerSideError):
            print(f"{prompt!r}: {answer.message}")
        elif isinstance(answer, BaseException):
            raise answer
        else:
            print(f"{prompt!r} -> {answer.text!r} ({answer.finish_reason})")


asyncio.run(main())
