"""Run folders: checkpoints, their lineage, heartbeats and status."""
