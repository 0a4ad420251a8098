"""A local OpenAI-compatible server that uses the router: ``edgekit serve``.

``protocol`` parses requests, ``replies`` and ``api_errors`` build responses, ``admission`` limits the queue,
``async_bridge`` passes an answer from the router's thread to asyncio, ``guard`` is the middleware before all routes,
``app`` has the routes, ``history`` records requests, ``running`` runs the process and ``assembly`` wires it up.
"""
