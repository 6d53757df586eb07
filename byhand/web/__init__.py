"""The page's files, as they are sent: package data, no code."""
