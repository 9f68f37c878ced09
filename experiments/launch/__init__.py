"""Starting a run as several processes."""
