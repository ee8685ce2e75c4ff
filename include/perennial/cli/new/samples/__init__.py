"""Samples of feeds: how their text is written, the types of their columns, the partitions in their names."""

__all__ = ["choices", "event_times", "file_names", "sample_reader", "time_zones"]
