"""Settings every test shares: one thread, so that runs on any machine agree and share cores."""

import os

# What this shell has for its own work is not for the tests.
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "PIPELINE_STORE"):
    os.environ.pop(name, None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray Train asks its workers every two seconds whether they are done; tests need not wait for that.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")


def pytest_collection_modifyitems(items):
    """Slow tests first, so that no process is left with a long one when the others are done."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
