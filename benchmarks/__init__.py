"""Side-by-side measurements. Each module prints a Markdown table: `python -m benchmarks.NAME`."""
