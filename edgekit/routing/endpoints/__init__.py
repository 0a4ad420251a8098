"""OpenAI-compatible endpoints, called with deadlines and without showing secrets."""

from edgekit.routing.endpoints.breaker import Breaker, RetryBudget
from edgekit.routing.endpoints.endpoint import Endpoint, Reply
from edgekit.routing.endpoints.keys import Key, read_key

__all__ = ["Breaker", "Endpoint", "Key", "Reply", "RetryBudget", "read_key"]
