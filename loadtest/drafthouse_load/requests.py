"""One request as a client sees it."""

import time
from contextlib import closing

from drafthouse_client import Client, GenerateOptions
from drafthouse_load.prompts import DomainPrompt
from drafthouse_load.records import RequestRecord


def timed_request(client: Client, prompt: DomainPrompt, index: int, options: GenerateOptions) -> RequestRecord:
    """Stream one completion and note when its parts arrive; ``index`` is the prompt's number in its set."""
    began_s = time.perf_counter()
    ttft_s, first = 0.0, 0
    ids: list[int] = []
    with closing(client.stream(prompt.prompt, options)) as stream:
        for chunk in stream:
            if chunk.output_ids and not ids:
                ttft_s, first = time.perf_counter() - began_s, len(chunk.output_ids)
            ids.extend(chunk.output_ids)
    return RequestRecord(prompt.domain, index, ttft_s, time.perf_counter() - began_s, len(ids), first, tuple(ids))
