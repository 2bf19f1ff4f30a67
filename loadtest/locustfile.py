"""Load tests with locust: `locust -f loadtest/locustfile.py --host http://127.0.0.1:8000`; docs/load_tests.md tells more."""

from drafthouse_load.locust_users.setup import install
from drafthouse_load.locust_users.users import GrpcUser, SseUser

__all__ = ["GrpcUser", "SseUser"]

install()
