"""Small faults, planted on purpose: each is a change to one file, and tests that must notice it."""
