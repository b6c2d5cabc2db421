"""Commands: `python -m tasks.NAME`, or `vlm NAME`."""
