"""Run bundles on other devices: a phone on the desk, a board on the network, a lab at night."""
