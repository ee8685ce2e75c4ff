"""What several test folders share: a small model and its data, servers, processes that can be killed."""
