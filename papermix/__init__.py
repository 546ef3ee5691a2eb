"""papermix: the methods of many papers on one training command, as parts that mix."""

__version__ = "0.1.0"
