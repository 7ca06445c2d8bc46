"""Published figures beside ours: paper files, the runs that they ask for, and the page."""
