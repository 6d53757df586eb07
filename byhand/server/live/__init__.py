"""The live WebSocket: runs that are started, watched, steered and forked from afar (docs/live.md)."""

from byhand.server.live.endpoint import Live

__all__ = ["Live"]
