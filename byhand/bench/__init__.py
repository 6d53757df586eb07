"""The benchmark: this machine's limits, byhand, and the peers that are installed, each in a process of its own."""
