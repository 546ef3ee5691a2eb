"""papermix's sweepers as Hydra plugins."""
