"""ALERT (Wan et al. 2020): the network and the power setting that meet goals of latency, accuracy and energy."""
