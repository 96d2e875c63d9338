"""The training loop: configuration, data, schedules, metrics, records (numpy only)."""
