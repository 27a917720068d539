"""Sample logs of other harnesses: lm-evaluation-harness and inspect_ai, read and written."""
