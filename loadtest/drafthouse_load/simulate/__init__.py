"""`drafthouse simulate`: the server's queue, policies and estimates in virtual time. See docs/scheduling.md."""
