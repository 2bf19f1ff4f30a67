"""The replay: the real pipeline, fusion and router in virtual time, on recorded engine outputs and stage costs, a core per stage."""
