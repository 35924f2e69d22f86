"""The tray: Stoker's icon, a small client of the daemon like any other."""
