"""`drafthouse gateway`: OpenAI's API in front of a running server."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from drafthouse.core.errors import DrafthouseError, invalid
from drafthouse_client.built import DEFAULT_REPOSITORY, tokenizer_file
from drafthouse_client.gateway.app import create_app
from drafthouse_client.gateway.settings import DEFAULT_PORT, GatewaySettings

API_KEY_VARIABLE = "DRAFTHOUSE_API_KEY"
_DRAIN_S = 3  # how long open answers may take to end at a stop
_BACKLOG = 512


def parser() -> argparse.ArgumentParser:
    """The options of `drafthouse gateway`."""
    default = GatewaySettings()
    parser = argparse.ArgumentParser(prog="drafthouse gateway", description="Serve OpenAI's API in front of a running server.")
    option = parser.add_argument
    option("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    option("--port", type=int, default=DEFAULT_PORT, help="(default: %(default)s)")
    option("--url", default=default.grpc_url, help="gRPC endpoint of the server (default: %(default)s)")
    option("--served-model-name", default=default.served_name, metavar="NAME", help="the model's id (default: %(default)s)")
    option("--tokenizer", type=Path, metavar="DIR", help="the target's tokenizer.json and chat template (default: the built repository's)")
    option("--model-repository", type=Path, default=DEFAULT_REPOSITORY, help="where to look for the tokenizer (default: %(default)s)")
    option("--api-key-file", type=Path, help=f"holds the bearer token (default: {API_KEY_VARIABLE} in the environment, else none)")
    option("--cors-origin", action="append", default=[], metavar="ORIGIN", help="let pages of this origin call; may be repeated")
    option("--max-body-bytes", type=int, default=default.max_body_bytes, help="(default: %(default)s)")
    option("--max-choices", type=int, default=default.max_choices, help="prompts × n of one request (default: %(default)s)")
    option("--timeout-s", type=float, default=default.timeout_s, help="limit of one request (default: %(default)s)")
    option("--stall-s", type=float, default=default.stall_s, help="how long a client may leave a chunk unread (default: %(default)s)")
    option("--access-log", action="store_true", help="a line per request on standard output")
    return parser


def settings_from(args: argparse.Namespace) -> GatewaySettings:
    """Raises ClientError naming the option."""
    found = tokenizer_file(args.model_repository)
    return GatewaySettings(
        grpc_url=args.url,
        served_name=args.served_model_name,
        tokenizer_dir=args.tokenizer or (found.parent if found is not None else None),
        api_key=_api_key(args.api_key_file),
        cors_origins=tuple(args.cors_origin),
        max_body_bytes=args.max_body_bytes,
        max_choices=args.max_choices,
        timeout_s=args.timeout_s,
        stall_s=args.stall_s,
    )


def _api_key(file: Path | None) -> str:
    """Never an argument: anybody on the machine may read those."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE, "")
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        raise invalid("--api-key-file", str(file), "a text file that can be read") from None
    if not key:
        raise invalid("--api-key-file", str(file), "a file with a token in it")
    return key


def main(argv: Sequence[str]) -> int:
    """Serves until a signal. Exit status 0, or 1 when it could not start."""
    args = parser().parse_args(argv)
    try:
        app = create_app(settings_from(args))
    except DrafthouseError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=args.host,
            port=args.port,
            log_level="warning" if not args.access_log else "info",
            access_log=args.access_log,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_DRAIN_S,
        )
    )
    server.run()
    return 0 if server.started else 1
