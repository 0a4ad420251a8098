"""An OpenAI-compatible server on this machine that applies the router: ``edgekit serve``.

``protocol`` reads what clients send, ``replies`` and ``api_errors`` write what they get, ``admission`` keeps the queue,
``async_bridge`` carries an answer from the router's thread into asyncio, ``guard`` stands before all of it, ``app`` has
the routes, ``history`` writes down what happened, ``running`` is the process and ``assembly`` puts it together.
"""
