"""What a scheduling decision costs: the server's own queue, policies and estimates, without a server."""
