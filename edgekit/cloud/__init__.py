"""The OpenAI-compatible side: endpoints that the user named, called with deadlines and without secrets in sight."""

from edgekit.cloud.breaker import Breaker, RetryBudget
from edgekit.cloud.endpoint import Endpoint, Reply
from edgekit.cloud.keys import Key, read_key

__all__ = ["Breaker", "Endpoint", "Key", "Reply", "RetryBudget", "read_key"]
