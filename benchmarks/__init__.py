"""Speed, memory and waiting time of lightning_llm beside its peers: `python -m benchmarks`."""
