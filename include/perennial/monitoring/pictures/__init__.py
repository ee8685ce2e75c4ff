"""The pictures with which a monitoring report begins, and the histograms of the columns that it compared."""

__all__ = ["feature_histograms", "signal_charts"]
