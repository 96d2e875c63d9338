"""The training loop: configuration, schedules, metrics, records (numpy only)."""
