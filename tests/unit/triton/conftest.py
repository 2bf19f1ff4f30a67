"""Lets `drafthouse.triton` be imported without a server."""

import sys

from fakes import pb_utils

sys.modules.setdefault("triton_python_backend_utils", pb_utils)
