"""The OpenAI gateway: OpenAI's completions and chat completions on one side, Triton's gRPC streams on the other."""
