"""Settings of the property tests: the same examples in every run, small enough for two cores."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "lightning_llm",
    derandomize=True,
    deadline=None,
    max_examples=60,
    print_blob=True,
    # Fixtures here give a place for files and a tokenizer; no example leaves a trace in them.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("lightning_llm")
