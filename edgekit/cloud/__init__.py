"""The OpenAI-compatible side: endpoints that the user named, called with deadlines and without secrets in sight."""
