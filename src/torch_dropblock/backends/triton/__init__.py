"""backends/triton."""
