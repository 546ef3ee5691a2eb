"""Where the runs of a sweep compute: SLURM through submitit, Ray tasks, several processes of this machine through joblib."""
