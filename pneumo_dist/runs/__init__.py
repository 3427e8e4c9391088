"""Run folders: checkpoints, what they were trained on, heartbeats, status."""
