"""Integration tests of `jobs/sharing/`: a local hub, and the forms of other tools."""
