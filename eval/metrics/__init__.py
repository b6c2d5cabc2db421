"""Metrics as pure functions: official figures without the official scripts' dependencies."""
