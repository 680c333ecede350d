"""Models that draw. A backbone is a folder; `base` says what the rest of the engine asks of one."""
