"""The meters, one file each; to add a meter, add a file. The folder is the registry: ``--meter NAME[:ADDRESS]``.

``COVERS`` describes what the meter's joules include. ``WHOLE`` is True if they certainly include the processor that
runs the model; only such meters are selected by default. ``WHERE`` is ``device`` for a meter that the device reads
itself, ``beside`` for an instrument. ``ADDRESS`` says what follows the colon, "" for nothing. ``TESTED`` says how.

``find(root) -> list[PowerProbe]`` lists all meters of this machine, readable or not: an unreadable one raises an error
with the fix when it is started. ``connect(address, root) -> PowerProbe``, if there is one, makes the meter at an
address; without it the address selects from those that ``find`` lists.
"""
