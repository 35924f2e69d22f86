"""The tray: a client of the daemon like any other. It is not built yet; see CHANGELOG.md."""
