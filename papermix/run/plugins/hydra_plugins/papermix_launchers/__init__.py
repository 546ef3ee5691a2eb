"""papermix's launchers as Hydra plugins."""
