"""`gvc bench`: output layers side by side, one suite a file, with one meter, one registry and one store of results."""
