"""Users for locust: streams over SSE and gRPC, every event parsed. `loadtest/locustfile.py` is what locust is given."""
