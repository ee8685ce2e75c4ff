"""The champion's predictions for whole partitions, in units that fit into memory."""
