"""The evaluation harness: benchmarks read as their publishers ship them, official metrics, reports."""
