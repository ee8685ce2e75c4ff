"""Tasks that wait without holding a worker: for a partition, for the end of quiet hours, for a person's approval."""

__all__ = ["approval", "partition_arrival", "quiet_hours"]
