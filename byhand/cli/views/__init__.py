"""The terminal's views: values in, Rich renderables out. Nothing here runs a model."""
