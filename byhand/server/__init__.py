"""The server: OpenAI's API, routes of our own, and a guard before them. No torch here: the worker owns the model."""
