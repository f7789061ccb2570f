"""One suite for every back end of `app.ports`."""
