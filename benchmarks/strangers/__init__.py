"""What strangers can do: damaged inputs, text that leaves, hostile bundles, attacks, kills. One file a row.

Each module has ``main()``, which prints its rows and returns whether they hold.
"""
