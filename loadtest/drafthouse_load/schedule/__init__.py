"""`drafthouse bench schedule`: the same requests, arriving at the same times, under every policy on a real server."""
