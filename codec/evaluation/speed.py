"""Real-time factors: seconds of work for a second of sound; below 1 is faster than real time."""


def real_time_factor(elapsed_seconds: float, seconds: float) -> float:
    """Wall time over duration. Files are read, resampled and written in that time; the model was loaded before."""
    return elapsed_seconds / seconds
