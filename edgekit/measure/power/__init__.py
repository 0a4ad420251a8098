"""The meters, one file each. A file here has ``find(root) -> list[PowerProbe]``; to add a meter is to add a file.

``find`` lists what is there, readable or not: a meter that may not be read says so, with the fix, when it is started.
``COVERS`` says in words what the meter's joules include. ``WHOLE`` is True when they surely include the processor
that runs the model; only such a meter is used without being asked for by name.
"""
