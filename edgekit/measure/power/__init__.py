"""The meters, one file each with ``find(root) -> list[PowerProbe]``; to add a meter, add a file.

``find`` lists all meters, readable or not: an unreadable one raises an error with the fix when it is started.
``COVERS`` describes what the meter's joules include. ``WHOLE`` is True if they certainly include the processor that
runs the model; only such meters are selected by default.
"""
