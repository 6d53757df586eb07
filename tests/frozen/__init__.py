"""What byhand did on the day it was frozen: ids and bits of tiny models, records, what the server says.

Everything goes through public names alone (LLM, Run, Record, HTTP, /live), so that it holds whatever becomes of the
engine behind them. `python -m tests.frozen check` compares, `python -m tests.frozen write` writes anew; CHANGES.md
beside this file says what was changed on purpose, and why.
"""
