"""What ``scripts/torture.py`` does to trainings and to configs."""
