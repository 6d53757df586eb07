"""What byhand gave on 26 November 2026, before its engine was rebuilt: bits, records, and what a server said.

`python -m tests.frozen check` compares with today's code, `python -m tests.frozen write` writes anew; a number that
changes on purpose is listed with its reason in CHANGES.md.
"""
