"""What is written about runs and options: the catalog, reports over run folders, claims and their results."""
