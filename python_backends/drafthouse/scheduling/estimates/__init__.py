"""What is not known of a request: how long its output gets, how much of what is drafted for it is accepted, and so how long it takes."""
