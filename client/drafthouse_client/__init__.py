"""Python client and command line of Drafthouse."""
