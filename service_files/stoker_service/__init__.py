"""Start at login: the back ends for each system. They are not built yet; see CHANGELOG.md."""
