"""What a bundle costs on this machine, and which settings make it fastest."""
